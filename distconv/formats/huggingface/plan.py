"""The plan of a Hugging Face directory: which tensor is in which safetensors file.

Owns the shards, which are those of the directory that the result follows, and what its index and its configuration
must say to be true. Reads and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from distconv.errors import InputError, named
from distconv.formats.config_dtypes import says_quantised
from distconv.formats.huggingface.true_config import cannot_be_judged, leaves_out, true_config
from distconv.formats.model import MODEL_CONFIG, Reference
from distconv.formats.records import Entry, OutputFile
from distconv.models.parameters import Unconverted
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor, SourceFile

# What transformers' save_pretrained cuts at, in bytes.
_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, kw_only=True)
class HuggingFacePlan:
    """The files, and the tensors of each by its path; `filled`: names of tensors that the reference gave.

    `texts`: other files by name, with their content. `copied`: the side files of the directory `reference` by their
    paths below it, but for those and for what is not true of the tensors, of which `notes` speak; and its index, where
    that is as true of the result.
    """

    files: tuple[OutputFile, ...]
    shard_files: Mapping[str, tuple[NamedTensor, ...]]
    unconverted: tuple[Unconverted, ...]
    filled: tuple[str, ...]
    texts: Mapping[str, str]
    copied: Mapping[str, SourceFile]
    reference: str | None
    notes: tuple[str, ...] = ()

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The tensors of a file."""
        return (
            Entry(each.sources, each.tensor, each.name, key="", group=each.name, low_rank=each.low_rank)
            for each in self.shard_files[file.path]
        )

    def summary(self) -> dict[str, Any]:
        """How many tensors there are, and which come from the reference."""
        return {"hf": {"tensors": sum(map(len, self.shard_files.values())), "filled_from_reference": list(self.filled)}}


def make_huggingface_plan(
    tensors: Sequence[NamedTensor],
    unconverted: tuple[Unconverted, ...],
    filled: tuple[str, ...],
    reference: Reference,
    texts: Mapping[str, str] = MappingProxyType({}),
    *,
    config: Mapping[str, Any] | None = None,
    shard_bytes: int | None = None,
) -> HuggingFacePlan:
    """The plan for tensors in the files of the reference; in numbered ones where it names none.

    `config` is the configuration of the model, where the reference's is not true of it. With `texts`, other files by
    name, nothing else is copied from the reference. `shard_bytes`: the size of numbered files, for a result that is not
    to have the files of the reference. Those of a quantised one are none of a result.

    Raises:
        InputError: adapters would be in several files, which PEFT does not read.
    """
    shard_of = reference.shard_files
    numbered = shard_bytes is not None or reference.quantised
    if shard_of is None or numbered:
        shard_of = _own_shards(tensors, _stem(reference), shard_bytes or _SHARD_BYTES)
        if reference.is_adapter and len(set(shard_of.values())) > 1:
            total = sum(each.nbytes for each in tensors)
            raise InputError(
                f"shard_size={shard_bytes}: PEFT reads adapters from a single file, of {total} bytes; leave it out"
            )
    # A head that the reference does not have goes into its last file.
    shard_of = {**dict.fromkeys((each.name for each in tensors), max(shard_of.values(), default="")), **shard_of}
    shards: dict[str, list[NamedTensor]] = {}
    for tensor in tensors:
        shards.setdefault(shard_of[tensor.name], []).append(tensor)
    files = tuple(
        OutputFile(path=path, nbytes=sum(each.nbytes for each in shards[path]), order=(number,), batch=number)
        for number, path in enumerate(sorted(shards))
    )
    # The library's own order: wide elements first, so that all are aligned; then by name.
    ordered = {
        path: tuple(sorted(held, key=lambda each: (-ITEM_SIZE[each.tensor.dtype], each.name)))
        for path, held in shards.items()
    }
    index = None if numbered and len(files) < 2 else _index(tensors, shard_of, reference)
    name = f"{_stem(reference)}.safetensors.index.json"
    texts, copied_from = dict(texts), None if texts else reference.directory
    config = reference.config if config is None else config
    if copied_from is not None and not reference.is_adapter:
        config = true_config(config, tensors)
        if config != reference.config:
            texts[MODEL_CONFIG] = _json(config)
    index_file = reference.index_file if index is not None and index == reference.index_content else None
    if index is not None and index_file is None:
        texts[name] = _json(index)
    copied = {}
    if copied_from is not None:
        beside = reference.side_files if index_file is None else {**reference.side_files, name: index_file}
        copied = {path: file for path, file in beside.items() if path not in texts and not leaves_out(path, tensors)}
    return HuggingFacePlan(
        files=files,
        shard_files=ordered,
        unconverted=unconverted,
        filled=filled,
        texts=texts,
        copied=copied,
        reference=copied_from,
        notes=() if copied_from is None else tuple(_notes(reference, tensors, config)),
    )


def _stem(reference: Reference) -> str:
    return "adapter_model" if reference.is_adapter else "model"


def _own_shards(tensors: Sequence[NamedTensor], stem: str, nbytes: int) -> dict[str, str]:
    numbers = {}
    number, load = 0, 0
    for tensor in tensors:
        if load and load + tensor.nbytes > nbytes:
            number, load = number + 1, 0
        numbers[tensor.name] = number
        load += tensor.nbytes
    if not number:
        return dict.fromkeys(numbers, f"{stem}.safetensors")
    return {name: f"{stem}-{each + 1:05d}-of-{number + 1:05d}.safetensors" for name, each in numbers.items()}


def _index(
    tensors: Sequence[NamedTensor], shard_of: Mapping[str, str], reference: Reference
) -> Mapping[str, Any] | None:
    """What the index says, where there is more than one file or the reference has one."""
    weight_map = {tensor.name: shard_of[tensor.name] for tensor in tensors}
    known = reference.index_content
    if known is None and len(set(weight_map.values())) < 2:
        return None
    total = sum(tensor.nbytes for tensor in tensors)
    if known is None:
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    content = {**known, "weight_map": dict(sorted(weight_map.items()))}
    if isinstance(known.get("metadata"), Mapping):
        content["metadata"] = {**known["metadata"], "total_size": total}
        if "total_parameters" in known["metadata"] and weight_map.keys() != known["weight_map"].keys():
            content["metadata"]["total_parameters"] = sum(tensor.tensor.elements for tensor in tensors)
    return content


def _notes(reference: Reference, tensors: Sequence[NamedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """What of the reference is not true of the result, and what may not be, in words."""
    if says_quantised(reference.config) and not says_quantised(config):
        yield f"{MODEL_CONFIG}: without its quantisation: no tensor of the result is quantised"
    unclear = []
    for name in reference.side_files:
        if (reason := leaves_out(name, tensors)) is not None:
            yield f"{name}: not copied: {reason}"
        elif cannot_be_judged(name):
            unclear.append(name)
    if unclear:
        yield f"copied from the reference, and may not be true of the result: {named(unclear)}"


def _json(content: Mapping[str, Any]) -> str:
    """As transformers writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
