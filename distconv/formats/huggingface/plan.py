"""The plan of a Hugging Face result: the tensors of its shard files, and the texts beside them.

Owns the division into shard files, which is that of the reference, and the contents of index file and configuration.
Reads and writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from distconv.formats.model import MODEL_CONFIG, Reference
from distconv.formats.records import Entry, OutputFile
from distconv.models.bind import Unconverted
from distconv.models.definition import FLOATING
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor

# The largest shard file of transformers' `save_pretrained`, in bytes.
_SHARD_BYTES = 5_000_000_000
# The fields of config.json with the element type: before transformers 4.56, and since.
_DTYPE_KEYS = ("torch_dtype", "dtype")


@dataclass(frozen=True, kw_only=True)
class HuggingFacePlan:
    """The shard files of a result, and the files beside them.

    `shard_files`: path → tensors in stored order. `filled`: names of tensors taken from the reference. `texts`: names
    of other files → contents. `reference`: the directory whose side files, except those in `texts`, are copied, `None`
    for none. `index_name`: the index file in `reference` that is copied, since it is equally true of the result.
    """

    files: tuple[OutputFile, ...]
    shard_files: Mapping[str, tuple[NamedTensor, ...]]
    unconverted: tuple[Unconverted, ...]
    filled: tuple[str, ...]
    texts: Mapping[str, str]
    index_name: str | None
    reference: str | None

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The tensors of a file."""
        return (
            Entry(each.sources, each.tensor, each.name, key="", group=each.name, low_rank=each.low_rank)
            for each in self.shard_files[file.path]
        )

    def summary(self) -> dict[str, Any]:
        """The number of tensors, and the names of those from the reference."""
        return {"hf": {"tensors": sum(map(len, self.shard_files.values())), "filled_from_reference": list(self.filled)}}


def make_huggingface_plan(
    tensors: Sequence[NamedTensor],
    unconverted: tuple[Unconverted, ...],
    filled: tuple[str, ...],
    reference: Reference,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> HuggingFacePlan:
    """Plan tensors in the shard files of the reference, or in numbered ones if the reference names none.

    With `texts`, file name → content, side files are not copied from the reference.
    """
    file_of = reference.shard_files
    if file_of is None:
        file_of = _own_shard_files(tensors, _stem(reference))
    contents: dict[str, list[NamedTensor]] = {}
    for tensor in tensors:
        contents.setdefault(file_of[tensor.name], []).append(tensor)
    files = tuple(
        OutputFile(path=path, nbytes=sum(each.nbytes for each in contents[path]), order=(number,), batch=number)
        for number, path in enumerate(sorted(contents))
    )
    # The library's own order: wide elements first, so that all are aligned; then by name.
    ordered = {
        path: tuple(sorted(held, key=lambda each: (-ITEM_SIZE[each.tensor.dtype], each.name)))
        for path, held in contents.items()
    }
    index = _index(tensors, file_of, reference)
    name = f"{_stem(reference)}.safetensors.index.json"
    copied = index is not None and index == reference.index_content
    texts, copied_from = dict(texts), None if texts else reference.directory
    if copied_from is not None:
        texts |= _config_text(tensors, reference)
    if index is not None and not copied:
        texts[name] = _json(index)
    return HuggingFacePlan(
        files=files,
        shard_files=ordered,
        unconverted=unconverted,
        filled=filled,
        texts=texts,
        index_name=name if copied else None,
        reference=copied_from,
    )


def _stem(reference: Reference) -> str:
    return "adapter_model" if reference.is_adapter else "model"


def _own_shard_files(tensors: Sequence[NamedTensor], stem: str) -> dict[str, str]:
    numbers = {}
    number, load = 0, 0
    for tensor in tensors:
        if load and load + tensor.nbytes > _SHARD_BYTES:
            number, load = number + 1, 0
        numbers[tensor.name] = number
        load += tensor.nbytes
    if not number:
        return dict.fromkeys(numbers, f"{stem}.safetensors")
    return {name: f"{stem}-{each + 1:05d}-of-{number + 1:05d}.safetensors" for name, each in numbers.items()}


def _index(
    tensors: Sequence[NamedTensor], file_of: Mapping[str, str], reference: Reference
) -> Mapping[str, Any] | None:
    """The content of the index file; `None` for a single shard file and a reference without an index."""
    weight_map = {tensor.name: file_of[tensor.name] for tensor in tensors}
    known = reference.index_content
    if known is None and len(set(weight_map.values())) < 2:
        return None
    total = sum(tensor.nbytes for tensor in tensors)
    if known is None:
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    content = {**known, "weight_map": dict(sorted(weight_map.items()))}
    if isinstance(known.get("metadata"), Mapping):
        content["metadata"] = {**known["metadata"], "total_size": total}
    return content


def _config_text(tensors: Sequence[NamedTensor], reference: Reference) -> dict[str, str]:
    """The changed configuration by name, if its element type is not that of most of the model's bytes; else empty."""
    weights = Counter[str]()
    for tensor in tensors:
        if tensor.tensor.dtype in FLOATING:
            weights[tensor.tensor.dtype] += tensor.nbytes
    said = next(_dtypes(reference.config), None)
    dtype = max(weights, key=lambda each: weights[each], default=said)
    if reference.is_adapter or said is None or said == dtype:
        return {}
    return {MODEL_CONFIG: _json(_with_dtype(reference.config, said, dtype))}


def _dtypes(config: Mapping[str, Any]) -> Iterator[str]:
    """The element types in a configuration: the model's own first, then those of its nested configurations."""
    yield from (config[key] for key in _DTYPE_KEYS if isinstance(config.get(key), str))
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _dtypes(part)


def _with_dtype(value: Any, old: str, new: str | None) -> Any:
    if isinstance(value, Mapping):
        return {
            key: new if key in _DTYPE_KEYS and item == old else _with_dtype(item, old, new)
            for key, item in value.items()
        }
    return value


def _json(content: Mapping[str, Any]) -> str:
    """The text of a JSON file in the style of transformers."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
