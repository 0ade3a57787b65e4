"""The plan of a `torch.distributed.checkpoint` (DCP): whole tensors in chunks, and the chunks in files.

Owns the sizes of chunks and files. Neither depends on the number of processes, so the result does not either. Reads and
writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from distconv.errors import JobError, named
from distconv.formats.records import Entry, OutputFile
from distconv.models.bind import Unconverted
from distconv.tensors.compose import box_of, contiguous_blocks
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor, position
from distconv.tensors.virtual import Index, VirtualTensor

# A reader takes whole chunks, so a chunk is no more than this where rows allow it.
CHUNK_BYTES = 64 * 1024**2
# A file is at least so large, and about so many files are enough to keep any number of processes busy.
_LEAST_FILE_BYTES = 128 * 1024**2
_ENOUGH_FILES = 1024
# The key under which training programs keep the parameters.
MODEL_KEY = "model"


@dataclass(frozen=True, slots=True)
class Chunk(Entry):
    """A box of the tensor `whole`, stored as a tensor of its own: `key` is that one's name, `name` says where."""

    whole: NamedTensor
    offsets: Index


class PartFile(OutputFile):
    """A file of chunks; its number is its only coordinate."""

    @property
    def part(self) -> int:
        """Its number."""
        return self.order[0]


@dataclass(frozen=True, kw_only=True)
class DcpPlan:
    """The files of a DCP, and the chunks of each."""

    files: tuple[PartFile, ...]
    parts: tuple[tuple[Chunk, ...], ...]
    unconverted: tuple[Unconverted, ...]
    naming: str

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The chunks of a file."""
        return iter(self.chunks(file))

    def chunks(self, file: OutputFile) -> tuple[Chunk, ...]:
        """The chunks of a file, with the tensors that they belong to."""
        assert isinstance(file, PartFile)
        return self.parts[file.part]

    def tensors(self) -> list[NamedTensor]:
        """The tensors that the chunks make up, each once, in the order of their chunks."""
        return list({chunk.key: chunk.whole for part in self.parts for chunk in part}.values())

    def summary(self) -> dict[str, Any]:
        """How many tensors and chunks there are, and how they are named."""
        tensors = self.tensors()
        return {
            "dcp": {
                "naming": self.naming,
                "example": tensors[0].name if tensors else None,
                "tensors": len(tensors),
                "chunks": sum(map(len, self.parts)),
            }
        }


def make_dcp_plan(tensors: Iterable[NamedTensor], unconverted: tuple[Unconverted, ...], naming: str) -> DcpPlan:
    """The plan for these tensors, in the order in which their sources are stored.

    Raises:
        JobError: two tensors of one name; a defect, found before writing.
    """
    ordered = sorted(tensors, key=lambda tensor: (position(tensor.sources), tensor.name))
    twice = [name for name, count in Counter(tensor.name for tensor in ordered).items() if count > 1]
    if twice:
        raise JobError(f"would be written twice: {named(twice)}; nothing has been written")
    file_bytes = max(_LEAST_FILE_BYTES, sum(tensor.nbytes for tensor in ordered) // _ENOUGH_FILES)
    parts: list[list[Chunk]] = [[]]
    loads = [0]
    for chunk in _chunks(ordered):
        if loads[-1] >= file_bytes:
            parts.append([])
            loads.append(0)
        parts[-1].append(chunk)
        loads[-1] += chunk.nbytes
    files = tuple(
        # Named as torch names the only file of a rank.
        PartFile(path=f"__{number}_0.distcp", nbytes=nbytes, order=(number,), batch=number)
        for number, nbytes in enumerate(loads)
    )
    return DcpPlan(files=files, parts=tuple(map(tuple, parts)), unconverted=unconverted, naming=naming)


def _chunks(tensors: Iterable[NamedTensor]) -> Iterator[Chunk]:
    # Tensors that look alike have the same table, which costs less to identify than to hash, and share their chunks'.
    known: dict[int, Mapping[Index, VirtualTensor]] = {}
    for whole in tensors:
        tensor, name = whole.tensor, whole.name
        if id(tensor) not in known:
            known[id(tensor)] = dict(_cut(tensor))
        for offsets, box in known[id(tensor)].items():
            place = f"chunk {list(offsets)}"
            yield Chunk(whole.sources, box, place, key=name, group=(name, offsets), whole=whole, offsets=offsets)


def _cut(tensor: VirtualTensor) -> Iterator[tuple[Index, VirtualTensor]]:
    if not prod(tensor.shape):
        yield (0,) * len(tensor.shape), tensor
        return
    for start, lengths in contiguous_blocks(tensor.shape, CHUNK_BYTES // ITEM_SIZE[tensor.dtype]):
        yield start, box_of(tensor, start, lengths)
