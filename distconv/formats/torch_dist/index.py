"""The source index of a torch_dist checkpoint: parameters with global numbers, over the chunks that they lie in.

Owns the choice of the directory, what of the metadata is of the model, and the parameters in stacked tensors. Reads no
tensor data, and knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from distconv.errors import InputError, counted, raise_if
from distconv.formats.dcp.index import DcpDirectory, DcpIndex, chosen_directory, locate, read_directory
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.foreign import KIND_NAME
from distconv.formats.huggingface.directory import check_directory
from distconv.formats.torch_dist.common import Common, read_common
from distconv.formats.torch_dist.keys import COMMON_STATE, EXTRA_STATES, Part, other_kind, parts_of, prefix_of
from distconv.formats.torch_dist.kind import check_kind
from distconv.formats.torch_dist.sizes import Told, read_run_config
from distconv.runtime.hand_out import HandOut, here
from distconv.tensors.compose import renumbered, unstack
from distconv.tensors.stored import NamedTensor, SourceFile
from distconv.tensors.virtual import Copy, VirtualTensor, concat

# A few bytes of metadata could tell of any number of layers and experts.
_MOST_PARAMETERS = 1 << 20
_SAVE_AGAIN = "load the checkpoint in training, and save it again"


@dataclass(frozen=True, kw_only=True)
class TorchDistDirectory:
    """A checkpoint with its parsed metadata and its common part; `told`: what configurations of training tell."""

    checkpoint: DcpDirectory
    common: Common
    told: tuple[Told, ...]

    @property
    def keys(self) -> list[str]:
        """The keys of the tensors of the model."""
        return [key for key in self.checkpoint.metadata.tensors if other_kind(key) is None]

    def others(self) -> list[str]:
        """What is not of the model, by kind, in words."""
        metadata = self.checkpoint.metadata
        kinds = Counter(
            other_kind(key) or f"{key.partition('/')[0]}, which is no tensor"
            for key in (*metadata.tensors, *metadata.blobs)
            if key != COMMON_STATE and (key in metadata.blobs or other_kind(key))
        )
        found = [
            f"{kind}: {counted(count, 'entry', 'entries')}; "
            + ("none of them is a weight" if kind == EXTRA_STATES else "only the model is converted")
            for kind, count in sorted(kinds.items())
        ]
        return found + [f"{name} of the common part; only the model is converted" for name in self.common.others]


def open_torch_dist(directory: Path, iteration: str | None) -> TorchDistDirectory:
    """Read the metadata of a checkpoint in a directory, or of its iteration `iteration`, by default the tracker's.

    Raises:
        InputError: no such checkpoint, one of another backend or version, or files that are damaged, malicious, or of
            different checkpoints.
    """
    check_directory(directory, "source")
    found = chosen_directory(directory, iteration, KIND_NAME)
    seen: list[SourceFile] = []
    is_file = check_kind(found, seen)
    checkpoint = read_directory(found)
    raise_if(list(_other_lengths(checkpoint)))
    common = read_common(checkpoint, seen, is_file=is_file)
    run_config = read_run_config(found, seen)
    described_by = (*seen, *checkpoint.described_by)
    return TorchDistDirectory(
        checkpoint=replace(checkpoint, described_by=described_by),
        common=common,
        told=tuple(each for each in (common.told, run_config) if each is not None),
    )


def index_parameters(opened: TorchDistDirectory, hand_out: HandOut = here) -> DcpIndex:
    """Locate the parameters of the model, under the names of Megatron-core's local spec.

    Raises:
        InputError: every chunk that is not at its position in the metadata; every tensor that its chunks do not tile,
            or that is not stacked as its key tells; every parameter of which a half is missing, or that is there twice.
    """
    keys = opened.keys
    stacked = locate(opened.checkpoint, set(keys).__contains__, hand_out)
    tensors = _Parameters(str(opened.checkpoint.directory / METADATA), prefix_of(keys))
    for key, tensor in stacked.tensors.items():
        tensors.add(key, tensor)
    return replace(stacked, tensors=tensors.complete(), others=())


def _other_lengths(checkpoint: DcpDirectory) -> Iterator[str]:
    """The files that are longer than the metadata tells: every byte of them is of one of its entries."""
    for name, expected in sorted(checkpoint.metadata.files.items()):
        path = checkpoint.directory / name
        if path.is_file() and (size := path.stat().st_size) > expected:
            yield (
                f"{path}: has {size} bytes, but {METADATA} tells of {expected}: it is of another checkpoint; the files "
                "of two iterations, or of two saves, are mixed"
            )


class _Parameters:
    """The parameters in stacked tensors, and all that is wrong with them; those stored alike share a table."""

    def __init__(self, where: str, prefix: str) -> None:
        self._where, self._prefix, self._problems = where, prefix, list[str]()
        self._tensors: dict[str, NamedTensor] = {}
        self._halves: dict[str, dict[int, NamedTensor]] = {}
        self._keys: dict[tuple[str, int | None], str] = {}
        self._tables: dict[VirtualTensor, VirtualTensor] = {}

    def add(self, key: str, tensor: NamedTensor) -> None:
        """Add the parameters in the tensor of a key."""
        try:
            parts = parts_of(key.removeprefix(self._prefix), tensor.tensor.shape)
        except ValueError as error:
            self._problems.append(f"{self._where}: tensor {key}: {error}")
            return
        if len(self._keys) > _MOST_PARAMETERS:
            raise InputError(
                f"{self._where}: names more than {_MOST_PARAMETERS} parameters: it is damaged; {_SAVE_AGAIN}"
            )
        slices = unstack(tensor.tensor, len(parts[0].position)) if parts else {}
        for part in parts:
            other = self._keys.setdefault((part.name, part.half), key)
            if other != key:
                self._problems.append(f"{self._where}: tensors {other} and {key} both hold {part.name}; {_SAVE_AGAIN}")
            else:
                self._take(part, tensor, slices[part.position])

    def _take(self, part: Part, tensor: NamedTensor, table: VirtualTensor) -> None:
        numbers: dict[int, int] = {}
        for copy in table.copies:
            numbers.setdefault(copy.operand, len(numbers))
        copies = tuple(
            Copy(numbers[each.operand], each.source_start, each.target_start, each.shape, each.dims)
            for each in table.copies
        )
        sources = tuple(tensor.sources[number] for number in numbers)
        own = self._shared(replace(table, copies=copies))
        taken = NamedTensor(sources, own, part.name)
        if part.half is None:
            self._tensors[part.name] = taken
        else:
            self._halves.setdefault(part.name, {})[part.half] = taken

    def _shared(self, table: VirtualTensor) -> VirtualTensor:
        return self._tables.setdefault(table, table)

    def complete(self) -> Mapping[str, NamedTensor]:
        """All parameters by name.

        Raises:
            InputError: all that is wrong.
        """
        for name, halves in self._halves.items():
            if name in self._tensors or halves.keys() != {0, 1}:
                keys = [key for (held, _), key in self._keys.items() if held == name]
                what = "and as a whole" if name in self._tensors else "and the other one is missing"
                self._problems.append(
                    f"{self._where}: {name} is stored as gate and up apart ({', '.join(keys)}) {what}; {_SAVE_AGAIN}"
                )
                continue
            gate, up = halves[0], halves[1]
            try:
                joined = concat([gate.tensor, renumbered(up.tensor, len(gate.sources))])
            except ValueError as error:
                self._problems.append(
                    f"{self._where}: {name} is stored as gate and up apart, which do not fit: {error}; {_SAVE_AGAIN}"
                )
                continue
            self._tensors[name] = NamedTensor((*gate.sources, *up.sources), self._shared(joined), name)
        raise_if(self._problems)
        if not any(prod(each.tensor.shape) for each in self._tensors.values()):
            raise InputError(
                f"{self._where}: holds no tensor of a model; give a checkpoint that was saved with its weights"
            )
        return self._tensors
