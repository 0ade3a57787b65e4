"""What a plan consists of, whatever its format: output files, and the tensors that each of them holds.

Owns the records that assignment, transfer, verification and reports work with. Knows no format, and makes none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from distconv.models.bind import Unconverted
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import StoredTensor
from distconv.tensors.values import LowRank
from distconv.tensors.virtual import VirtualTensor, whole


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file of the result: its path below the result's directory, and its tensor data in bytes.

    Files are assigned to processes in their `order`; those of one `batch` are made from the same sources.
    """

    path: str
    nbytes: int
    order: tuple[int, ...]
    batch: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: the key of its group in the file, its name there, what it is made of, what is added to it.

    Entries of one parameter have the same tuple of sources, and entries that look alike the same tensor.
    """

    key: str
    name: str
    sources: tuple[StoredTensor, ...]
    tensor: VirtualTensor
    low_rank: LowRank | None = None

    @property
    def title(self) -> str:
        """What it is called in messages about its file."""
        return f"{self.key}/{self.name}" if self.key else self.name


def mismatch(entry: Entry, dtype: str, shape: Sequence[int]) -> str | None:
    """In words, how a stored tensor differs from an entry before its data is looked at, if it does."""
    tensor = entry.tensor
    if (dtype, tuple(shape)) == (tensor.dtype, tensor.shape):
        return None
    return f"is {dtype} {list(shape)}, expected {tensor.dtype} {list(tensor.shape)}"


class Plan(Protocol):
    """Everything that will be written, as outlines; `entries` spells out one file."""

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """The files that hold tensors."""

    @property
    def unconverted(self) -> tuple[Unconverted, ...]:
        """The source tensors that are left out on purpose."""

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The tensors of a file in the order in which it stores them."""

    def summary(self) -> dict[str, Any]:
        """What is particular to the format, as plain data for the report."""


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A whole tensor of a result whose format does not cut by rank."""

    name: str
    sources: tuple[StoredTensor, ...]
    tensor: VirtualTensor
    low_rank: LowRank | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.tensor.elements * ITEM_SIZE[self.tensor.dtype]

    @property
    def position(self) -> tuple[str, int]:
        """Where its first source lies: a job that takes tensors in this order reads sequentially."""
        return (self.sources[0].file.path, self.sources[0].offset) if self.sources else ("", 0)


def as_stored(stored: Iterable[StoredTensor]) -> Iterator[NamedTensor]:
    """Stored tensors as they are, under their names; those that look alike share one table."""
    table = cache(whole)
    return (NamedTensor(each.name, (each,), table(each.dtype, each.shape)) for each in stored)
