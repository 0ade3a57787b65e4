"""The source index: which tensors a checkpoint holds, where their bytes are, and tensors assembled from them.

Owns the records that all later stages plan with. It knows nothing of file formats and reads nothing: formats produce
them, rank 0 shares them with the other processes.
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
    """Whether a text that stands in a checkpoint is the name of a file in its directory, and leads nowhere else."""
    return not _NO_FILE_NAME.fullmatch(text)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that holds tensor data: its absolute path, and its size in bytes when the index was made."""

    path: str
    size: int


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


def position(sources: Sequence[StoredTensor]) -> tuple[str, int]:
    """Path and offset in bytes of the first of the sources: a job that takes tensors in this order reads sequentially.

    Tensors without sources come first.
    """
    return (sources[0].file.path, sources[0].offset) if sources else ("", 0)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A tensor as it is assembled from stored ones: operand `i` of the table `tensor` is `sources[i]`.

    Those that are assembled alike share one table, the same object, so that what follows from it is derived once.
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
    """A tensor under a name; `low_rank`: the product that is added to it, if there is one."""

    name: str
    low_rank: LowRank | None = field(default=None, kw_only=True)


def as_stored(stored: Iterable[StoredTensor]) -> Iterator[NamedTensor]:
    """Stored tensors as they are, under their names; those that look alike share one table."""
    table = cache(whole)
    return (NamedTensor((each,), table(each.dtype, each.shape), each.name) for each in stored)


@dataclass(frozen=True, kw_only=True)
class SourceIndex:
    """The tensors of one checkpoint directory by name."""

    directory: str
    tensors: Mapping[str, StoredTensor]

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        files = {tensor.file: None for tensor in self.tensors.values()}
        numbers = {file: number for number, file in enumerate(files)}
        return {
            "directory": self.directory,
            "files": [[file.path, file.size] for file in files],
            "tensors": [
                [tensor.name, tensor.dtype, tensor.shape, numbers[tensor.file], tensor.offset]
                for tensor in self.tensors.values()
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SourceIndex:
        """The index that `to_json` described."""
        files = [SourceFile(path, size) for path, size in data["files"]]
        tensors = {
            name: StoredTensor(name, dtype, tuple(shape), files[file], offset)
            for name, dtype, shape, file, offset in data["tensors"]
        }
        return SourceIndex(directory=data["directory"], tensors=tensors)
