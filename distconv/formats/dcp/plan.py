"""The plan of a `torch.distributed.checkpoint` (DCP): the chunks of its tensors, and the files of chunks.

Owns the sizes of chunks and files, which do not depend on the number of processes. A tensor may be made of parts, such
as the layers that it stacks. Reads and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from distconv.errors import fault, named
from distconv.formats.frame import Frame
from distconv.formats.iterations import CHECKPOINT_VERSION, VERSION_KEY
from distconv.formats.records import Entry, OutputFile
from distconv.formats.torch_zip.create import value_frame
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
class Whole:
    """A tensor of a checkpoint, all chunks of it together."""

    name: str
    dtype: str
    shape: Index


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor as a part of `whole`: at `position` on the first dims of `whole`; its own dims are the others."""

    tensor: NamedTensor
    whole: Whole
    position: Index = ()

    @staticmethod
    def all_of(tensor: NamedTensor) -> Part:
        """A tensor that is all of a tensor of the checkpoint."""
        return Part(tensor, Whole(tensor.name, tensor.tensor.dtype, tensor.tensor.shape))


@dataclass(frozen=True, slots=True)
class Chunk(Entry):
    """A box of the tensor `whole` at `offsets`, as an entry: `key` is the name of `whole`, `name` shows the offsets.

    It has a dim of length one for each dim of `whole` on which its part has a position.
    """

    whole: Whole
    offsets: Index

    @property
    def shape(self) -> Index:
        """The shape, with as many dims as `whole` has."""
        return (1,) * (len(self.offsets) - len(self.tensor.shape)) + self.tensor.shape


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
class Value:
    """A value that is no tensor: the frame of its blob, which the first file begins with, and all keys that mean it."""

    keys: tuple[str, ...]
    frame: Frame


@dataclass(frozen=True, kw_only=True)
class DcpPlan:
    """The files of a DCP, and the chunks of every file by its number.

    `state`: the key under which the state dict has the tensors, `None` if it is flat. `form`: the name of the format.
    """

    files: tuple[ChunkFile, ...]
    chunks_of_files: tuple[tuple[Chunk, ...], ...]
    unconverted: tuple[Unconverted, ...]
    names: Names
    values: tuple[Value, ...]
    state: str | None
    form: str

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The chunks of a file."""
        return iter(self.chunks(file))

    def chunks(self, file: OutputFile) -> tuple[Chunk, ...]:
        """The chunks of a file, with the tensors that they belong to."""
        assert isinstance(file, ChunkFile)
        return self.chunks_of_files[file.number]

    def tensors(self) -> list[Whole]:
        """The tensors of the chunks, in the order of their first chunks."""
        return list({chunk.key: chunk.whole for chunks in self.chunks_of_files for chunk in chunks}.values())

    def values_in(self, file: OutputFile) -> tuple[Value, ...]:
        """The values in a file, in front of its chunks."""
        return self.values if file == self.files[0] else ()

    def full_name(self, tensor: Whole) -> str:
        """The name of a tensor in the metadata."""
        return tensor.name if self.state is None else f"{self.state}.{tensor.name}"

    def summary(self) -> dict[str, Any]:
        """The numbers of tensors and chunks, and the names with one example."""
        tensors = self.tensors()
        return {
            self.form: {
                "naming": self.names.naming,
                "dialect": self.names.dialect,
                "prefix": self.names.prefix,
                "example": tensors[0].name if tensors else None,
                "tensors": len(tensors),
                "chunks": sum(map(len, self.chunks_of_files)),
            }
        }


def make_dcp_plan(tensors: Iterable[NamedTensor], unconverted: tuple[Unconverted, ...], names: Names) -> DcpPlan:
    """Plan the DCP of a training program: whole tensors under the key of the model, and the version of the checkpoint.

    Raises:
        JobError: as `plan_parts`.
    """
    files, chunks = plan_parts(map(Part.all_of, tensors))
    version = Value(keys=(VERSION_KEY,), frame=value_frame(CHECKPOINT_VERSION))
    return DcpPlan(
        files=files,
        chunks_of_files=chunks,
        unconverted=unconverted,
        names=names,
        values=(version,),
        state=MODEL_KEY,
        form="dcp",
    )


def plan_parts(parts: Iterable[Part]) -> tuple[tuple[ChunkFile, ...], tuple[tuple[Chunk, ...], ...]]:
    """The files and their chunks, for tensors of a checkpoint in the order of the sources of their parts in storage.

    Raises:
        JobError: two tensors at one place of a tensor of the checkpoint; a defect, found before writing.
    """
    ordered = sorted(parts, key=lambda part: (position(part.tensor.sources), part.whole.name, part.position))
    places = Counter((part.whole.name, part.position) for part in ordered)
    if twice := [name for (name, _), count in places.items() if count > 1]:
        raise fault(f"would be written twice: {named(twice)}")
    file_bytes = max(_LEAST_FILE_BYTES, sum(part.tensor.nbytes for part in ordered) // _ENOUGH_FILES)
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
    return files, tuple(map(tuple, contents))


def _chunks(parts: Iterable[Part]) -> Iterator[Chunk]:
    # Tensors with one table, by identity since hashing costs more, share the tables of their chunks.
    known: dict[int, Mapping[Index, VirtualTensor]] = {}
    for part in parts:
        tensor, whole = part.tensor.tensor, part.whole
        if id(tensor) not in known:
            known[id(tensor)] = dict(_cut(tensor))
        for start, box in known[id(tensor)].items():
            offsets = part.position + start
            place, group = f"chunk {list(offsets)}", (whole.name, offsets)
            yield Chunk(part.tensor.sources, box, place, key=whole.name, group=group, whole=whole, offsets=offsets)


def _cut(tensor: VirtualTensor) -> Iterator[tuple[Index, VirtualTensor]]:
    if not prod(tensor.shape):
        yield (0,) * len(tensor.shape), tensor
        return
    for start, lengths in contiguous_blocks(tensor.shape, CHUNK_BYTES // ITEM_SIZE[tensor.dtype]):
        yield start, box_of(tensor, start, lengths)
