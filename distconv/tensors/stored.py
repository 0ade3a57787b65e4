"""The source index: the tensors of a checkpoint, the positions of their bytes, and tensors assembled from them.

Owns the records that all later stages plan with; formats make them, and rank 0 shares them with the other processes.
Knows no file format and reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.virtual import VirtualTensor, whole

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
class StoredTensor:
    """A contiguous tensor in a file: `offset` is the position in bytes of its first element in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SourceFile
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * ITEM_SIZE[self.dtype]

    def stored_bytes(self, nbytes: int, dtype: str) -> int:
        """The bytes in the file that become `nbytes` bytes of elements of type `dtype`."""
        return nbytes // ITEM_SIZE[dtype] * ITEM_SIZE[self.dtype]


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
    """Stored tensors as assembled ones under their own names; those of one element type and shape share a table."""
    table = cache(whole)
    return (NamedTensor((each,), table(each.dtype, each.shape), each.name) for each in stored)


@dataclass(frozen=True, kw_only=True)
class SourceIndex:
    """The tensors of one checkpoint directory by name."""

    directory: str
    tensors: Mapping[str, StoredTensor]

    @property
    def files(self) -> Iterable[SourceFile]:
        """The files that hold the tensors."""
        return {tensor.file: None for tensor in self.tensors.values()}

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        numbers = {file: number for number, file in enumerate(self.files)}
        return {
            "directory": self.directory,
            "files": [file.to_json() for file in numbers],
            "tensors": [
                [tensor.name, tensor.dtype, tensor.shape, numbers[tensor.file], tensor.offset]
                for tensor in self.tensors.values()
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SourceIndex:
        """The index that `to_json` described."""
        files = [SourceFile.from_json(each) for each in data["files"]]
        tensors = {
            name: StoredTensor(name, dtype, tuple(shape), files[file], offset)
            for name, dtype, shape, file, offset in data["tensors"]
        }
        return SourceIndex(directory=data["directory"], tensors=tensors)
