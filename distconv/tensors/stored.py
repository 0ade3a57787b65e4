"""The source index: the tensors of a checkpoint, the positions of their bytes, and tensors assembled from them.

Owns the records that all later stages plan with; formats make them, and rank 0 shares them with the other processes.
Knows no file format and reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from math import prod
from typing import Any

from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.virtual import VirtualTensor, permute, whole

# A way out of the directory, and what no file system has in a name: half of a surrogate pair is no character.
_NO_FILE_NAME = re.compile(r"\.{0,2}|.*[/\\\0\ud800-\udfff].*", re.DOTALL)


def is_file_name(text: str) -> bool:
    """Whether a text from a checkpoint is the name of a file in the checkpoint's directory, and no path out of it."""
    return not _NO_FILE_NAME.fullmatch(text)


@dataclass(frozen=True, slots=True)
class Header:
    """The bytes of a file that planning interpreted: their ranges, (start, stop) in bytes, and a digest of them all."""

    ranges: tuple[tuple[int, int], ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Inode:
    """What a file is to the system of one process; clients of one file system may have other numbers for it."""

    process: str
    device: int
    number: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that a job reads, as it was when it was looked at: its absolute path, and its size in bytes.

    `mtime_ns` is its modification time, `None` where a format does not tell it, `header` what was read of it. `inode`
    is for the process that looked, and does not count when files are compared.
    """

    path: str
    size: int
    mtime_ns: int | None = None
    header: Header | None = None
    inode: Inode | None = field(default=None, compare=False)

    def to_json(self) -> list[Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        header, inode = self.header, self.inode
        return [
            self.path,
            self.size,
            self.mtime_ns,
            None if header is None else [header.ranges, header.digest],
            None if inode is None else [inode.process, inode.device, inode.number],
        ]

    @staticmethod
    def from_json(data: Sequence[Any]) -> SourceFile:
        """The file in the data of `to_json`."""
        path, size, mtime_ns, header, inode = data
        return SourceFile(
            path,
            size,
            mtime_ns,
            None if header is None else Header(tuple((start, stop) for start, stop in header[0]), header[1]),
            None if inode is None else Inode(*inode),
        )


# The file of tensors that are expected, or assembled, and in no file.
NOWHERE = SourceFile("", 0)


@dataclass(frozen=True, slots=True)
class Quantised:
    """How the elements of a tensor are stored: as codes of some `bits`, and scales of blocks of rows and columns.

    `code`: the kind of codes, a name that `tensors.quantised` knows; rows are whole `words` of so many bytes.
    `numbers`: the type that they are computed in, and rounded to. `turned`: what is published for it, where it is not
    quantised, has the last two dims exchanged.
    """

    code: str
    bits: int
    words: int
    block: tuple[int, int]
    scales: StoredTensor
    numbers: str
    turned: bool = False


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scales of a tensor, by the rows and columns of its blocks, of which the last may be cut off."""
    *outer, rows, columns = shape
    return (*outer, -(-rows // block[0]), -(-columns // block[1]))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A contiguous tensor in a file: `offset` is the position in bytes of its first element in the file.

    One that is `quantised` counts as a tensor of `dtype`, as the plain ones of its model; its codes are at that
    position.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SourceFile
    offset: int
    quantised: Quantised | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * ITEM_SIZE[self.dtype]

    @property
    def is_turned(self) -> bool:
        """Whether what is published has the last two dims exchanged."""
        return self.quantised is not None and self.quantised.turned

    @property
    def published_shape(self) -> tuple[int, ...]:
        """The shape of what is published."""
        return (*self.shape[:-2], self.shape[-1], self.shape[-2]) if self.is_turned else self.shape

    @property
    def row_bytes(self) -> int:
        """The bytes in the file from one row, of all elements along the last dim, to the next."""
        if self.quantised is None:
            return self.shape[-1] * ITEM_SIZE[self.dtype]
        return -(-self.shape[-1] * self.quantised.bits // (8 * self.quantised.words)) * self.quantised.words

    @property
    def read_as(self) -> str:
        """The element type of what is read of it."""
        return self.dtype if self.quantised is None else self.quantised.numbers

    @property
    def stored_as(self) -> str:
        """The element type, or the kind of codes, in the file."""
        return self.dtype if self.quantised is None else self.quantised.code

    def stored_bytes(self, nbytes: int, dtype: str) -> int:
        """The bytes in the file that become `nbytes` bytes of elements of type `dtype`; without scales."""
        elements = nbytes // ITEM_SIZE[dtype]
        return elements * ITEM_SIZE[self.dtype] if self.quantised is None else elements * self.quantised.bits // 8

    def to_json(self, numbers: Mapping[SourceFile, int]) -> list[Any]:
        """Plain data for sharing with other processes, with the numbers of files; `from_json` reads it."""
        data = [self.name, self.dtype, self.shape, numbers[self.file], self.offset]
        how = self.quantised
        if how is not None:
            scales = how.scales.to_json(numbers)
            data.append([how.code, how.bits, how.words, how.block, scales, how.numbers, how.turned])
        return data

    @staticmethod
    def from_json(data: Sequence[Any], files: Sequence[SourceFile]) -> StoredTensor:
        """The tensor in the data of `to_json`, of files by their numbers."""
        name, dtype, shape, file, offset, *rest = data
        how = None
        for code, bits, words, (rows, columns), scales, *others in rest:
            how = Quantised(code, bits, words, (rows, columns), StoredTensor.from_json(scales, files), *others)
        return StoredTensor(name, dtype, tuple(shape), files[file], offset, how)


def position(sources: Sequence[StoredTensor]) -> tuple[str, int]:
    """The sort key of a tensor by its first source: path and offset in bytes. In this order, reads are sequential.

    Tensors without sources come first.
    """
    return (sources[0].file.path, sources[0].offset) if sources else ("", 0)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A tensor assembled from stored tensors: operand `i` of the table `tensor` is `sources[i]`.

    Where the element type of the table is another than that of a source, its elements are cast as they are moved.
    Tensors with equal tables share one table, as an object, so that anything derived from a table is derived once.
    """

    sources: tuple[StoredTensor, ...]
    tensor: VirtualTensor

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.tensor.nbytes


@dataclass(frozen=True, slots=True)
class LowRank:
    """`scaling` times the product of `b`, of shape [rows, rank], and `a`, of shape [rank, columns]."""

    b: Assembled
    a: Assembled
    scaling: float

    @property
    def nbytes(self) -> int:
        """Size of the factors in bytes."""
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True)
class NamedTensor(Assembled):
    """An assembled tensor with a name; `low_rank`: the product of two factors that is added to it, if any."""

    name: str
    low_rank: LowRank | None = field(default=None, kw_only=True)


def as_stored(stored: Iterable[StoredTensor]) -> Iterator[NamedTensor]:
    """Stored tensors as they are published, under their own names; those of one type and shape share a table."""

    @cache
    def table(dtype: str, shape: tuple[int, ...], *, turned: bool) -> VirtualTensor:
        tensor = whole(dtype, shape)
        dims = range(len(shape))
        return permute(tensor, (*dims[:-2], dims[-1], dims[-2])) if turned else tensor

    return (NamedTensor((each,), table(each.dtype, each.shape, turned=each.is_turned), each.name) for each in stored)


@dataclass(frozen=True, kw_only=True)
class SourceIndex:
    """The tensors of one checkpoint directory by name."""

    directory: str
    tensors: Mapping[str, StoredTensor]

    @property
    def files(self) -> Iterable[SourceFile]:
        """The files that hold the tensors."""
        scales = (each.quantised.scales for each in self.tensors.values() if each.quantised is not None)
        return {each.file: None for each in chain(self.tensors.values(), scales)}

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        numbers = {file: number for number, file in enumerate(self.files)}
        return {
            "directory": self.directory,
            "files": [file.to_json() for file in numbers],
            "tensors": [tensor.to_json(numbers) for tensor in self.tensors.values()],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SourceIndex:
        """The index that `to_json` described."""
        files = [SourceFile.from_json(each) for each in data["files"]]
        tensors = (StoredTensor.from_json(each, files) for each in data["tensors"])
        return SourceIndex(directory=data["directory"], tensors={each.name: each for each in tensors})
