"""The plan of a `torch.distributed.checkpoint` (DCP): the chunks of whole tensors, and the files of chunks.

Owns the sizes of chunks and files, which do not depend on the number of processes. Reads and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from distconv.errors import JobError, named
from distconv.formats.records import Entry, OutputFile
from distconv.models.parameters import Unconverted
from distconv.tensors.compose import box_of, contiguous_blocks
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor, position
from distconv.tensors.virtual import Index, VirtualTensor

# A reader takes whole chunks, so a chunk is no more than this where rows allow it.
CHUNK_BYTES = 64 * 1024**2
# The least size of a file in bytes, and a number of files that keeps any number of processes busy.
_LEAST_FILE_BYTES = 128 * 1024**2
_ENOUGH_FILES = 1024
# The key under which training programs keep the parameters.
MODEL_KEY = "model"


@dataclass(frozen=True, slots=True)
class Chunk(Entry):
    """A box of the tensor `whole` at `offsets`, as an entry: `key` is the name of `whole`, `name` shows the offsets."""

    whole: NamedTensor
    offsets: Index


class ChunkFile(OutputFile):
    """A file of chunks."""

    @property
    def number(self) -> int:
        """The number of the file in its plan."""
        return self.order[0]


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names of a DCP: `naming`, published or Megatron-side; of published ones their dialect; the prefix of all."""

    naming: str
    dialect: str | None = None
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class DcpPlan:
    """The files of a DCP, and the chunks of every file by its number."""

    files: tuple[ChunkFile, ...]
    chunks_of_files: tuple[tuple[Chunk, ...], ...]
    unconverted: tuple[Unconverted, ...]
    names: Names

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The chunks of a file."""
        return iter(self.chunks(file))

    def chunks(self, file: OutputFile) -> tuple[Chunk, ...]:
        """The chunks of a file, with the tensors that they belong to."""
        assert isinstance(file, ChunkFile)
        return self.chunks_of_files[file.number]

    def tensors(self) -> list[NamedTensor]:
        """The tensors of the chunks, in the order of their first chunks."""
        return list({chunk.key: chunk.whole for chunks in self.chunks_of_files for chunk in chunks}.values())

    def summary(self) -> dict[str, Any]:
        """The numbers of tensors and chunks, and the names with one example."""
        tensors = self.tensors()
        return {
            "dcp": {
                "naming": self.names.naming,
                "dialect": self.names.dialect,
                "prefix": self.names.prefix,
                "example": tensors[0].name if tensors else None,
                "tensors": len(tensors),
                "chunks": sum(map(len, self.chunks_of_files)),
            }
        }


def make_dcp_plan(tensors: Iterable[NamedTensor], unconverted: tuple[Unconverted, ...], names: Names) -> DcpPlan:
    """Plan tensors in the order of their sources in storage.

    Raises:
        JobError: two tensors of one name; a defect, found before writing.
    """
    ordered = sorted(tensors, key=lambda tensor: (position(tensor.sources), tensor.name))
    twice = [name for name, count in Counter(tensor.name for tensor in ordered).items() if count > 1]
    if twice:
        raise JobError(f"would be written twice: {named(twice)}; nothing has been written")
    file_bytes = max(_LEAST_FILE_BYTES, sum(tensor.nbytes for tensor in ordered) // _ENOUGH_FILES)
    contents: list[list[Chunk]] = [[]]
    loads = [0]
    for chunk in _chunks(ordered):
        if loads[-1] >= file_bytes:
            contents.append([])
            loads.append(0)
        contents[-1].append(chunk)
        loads[-1] += chunk.nbytes
    files = tuple(
        # Named as torch names the only file of a rank.
        ChunkFile(path=f"__{number}_0.distcp", nbytes=nbytes, order=(number,), batch=number)
        for number, nbytes in enumerate(loads)
    )
    return DcpPlan(files=files, chunks_of_files=tuple(map(tuple, contents)), unconverted=unconverted, names=names)


def _chunks(tensors: Iterable[NamedTensor]) -> Iterator[Chunk]:
    # Tensors with one table, by identity since hashing costs more, share the tables of their chunks.
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
