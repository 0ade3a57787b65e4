"""What a plan consists of, whatever its format: output files, and the tensors that each of them holds.

Owns the records that assignment, transfer, verification and reports work with. Knows no format, and makes none of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distconv.models.bind import Unconverted
from distconv.tensors.stored import NamedTensor


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
class Entry(NamedTensor):
    """A tensor of a file: its name in the dictionary `key` of the file, empty where the file is the dictionary.

    Entries of one batch that have the same `group` are shards of one parameter: they have the same sources, and are
    made from one read.
    """

    key: str
    group: Hashable

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
