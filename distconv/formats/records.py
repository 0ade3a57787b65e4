"""The records of a plan in any format: output files, and the entries (tensors) of a file.

Owns what assignment, transfer, verification, commit and reports have in common. Knows no format, and plans nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from distconv.models.parameters import Unconverted
from distconv.tensors.stored import NamedTensor


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file of a result: its path below the result's directory, and the size of its tensor data in bytes.

    Files are assigned to processes in ascending `order`; files of one `batch` are made from the same sources.
    """

    path: str
    nbytes: int
    order: tuple[int, ...]
    batch: int


@dataclass(frozen=True, kw_only=True)
class FilePart(OutputFile):
    """What one of several processes writes of the file `whole`: its entries number `start` to `stop`, without `stop`.

    `nbytes` is the size of their data alone.
    """

    whole: OutputFile
    start: int
    stop: int

    @property
    def is_first(self) -> bool:
        """Whether its writer is the one that makes the file."""
        return self.start == 0


class Written(NamedTuple):
    """A file as its writer left it: its size in bytes, and its CRC-32 where that was computed."""

    nbytes: int
    checksum: int | None


def checksum_text(checksum: int) -> str:
    """A checksum as people write it: eight hexadecimal digits."""
    return f"{checksum:08x}"


@dataclass(frozen=True, slots=True)
class Entry(NamedTensor):
    """A tensor of an output file, under its name in the dictionary `key` of the file; `key` is empty without one.

    Entries of one batch with equal `group` are shards of one parameter: they have the same sources, and are made from
    one read.
    """

    key: str
    group: Hashable

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that its file says; its elements are those of the table, in row-major order."""
        return self.tensor.shape

    @property
    def title(self) -> str:
        """The entry in messages about its file: key and name."""
        return f"{self.key}/{self.name}" if self.key else self.name


def mismatch(entry: Entry, dtype: str, shape: Sequence[int]) -> str | None:
    """The difference in words between the element type and shape of a stored tensor and an entry; `None` if equal."""
    tensor = entry.tensor
    if (dtype, tuple(shape)) == (tensor.dtype, entry.shape):
        return None
    return f"is {dtype} {list(shape)}, expected {tensor.dtype} {list(entry.shape)}"


# File offsets in bytes of tensors, by (key, name) of their entries.
Offsets = Mapping[tuple[str, str], int]


class Plan(Protocol):
    """The output files of a result as outlines; `entries` spells out the tensors of one file."""

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """The files that hold tensors."""

    @property
    def unconverted(self) -> tuple[Unconverted, ...]:
        """The source tensors left out on purpose, with reasons."""

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The tensors of a file in stored order."""

    def summary(self) -> dict[str, Any]:
        """The format's own part of the report, as plain data."""


def entries_of(plan: Plan, file: OutputFile) -> tuple[Entry, ...]:
    """The tensors of a file, or of a part of one, in stored order."""
    if isinstance(file, FilePart):
        return tuple(islice(plan.entries(file.whole), file.start, file.stop))
    return tuple(plan.entries(file))


def all_entries(plan: Plan, file: OutputFile) -> tuple[Entry, ...]:
    """The tensors of a file, or of the whole file that a part is of."""
    return tuple(plan.entries(whole_of(file)))


def whole_of(file: OutputFile) -> OutputFile:
    """The file itself, or that which a part is of."""
    return file.whole if isinstance(file, FilePart) else file
