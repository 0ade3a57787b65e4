"""What writing and verifying need to know of a file format, whichever it is.

Owns the interface alone; `megatron_files`, `dcp_files` and `huggingface_files` are the formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from distconv.formats.records import Entry, OutputFile

# File offsets in bytes of tensors, by key and name.
Offsets = Mapping[tuple[str, str], int]


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """Where the data of a new file belongs, and what `finish` needs to know of the file (plain JSON data)."""

    offsets: Offsets
    details: Any = None


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where the data of an existing file is, of the tensors that are as expected; and in words, what is not."""

    offsets: Offsets
    differences: list[str] = field(default_factory=list)


class Format(Protocol):
    """A format of the files of a result."""

    # Files that a result has no more of than its plan says.
    pattern: str

    def lay_out(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> LaidOut:
        """Write a complete file with holes where the data of the tensors goes.

        Raises:
            OSError: it cannot be written.
        """

    def locate(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Located:
        """Compare the structure of an existing file with what it should hold.

        Raises:
            InputError: it is missing or damaged.
        """

    def finish(self, directory: Path, details: Mapping[str, Any]) -> Mapping[str, int]:
        """Write what a result has beside its tensors, on rank 0 when all files are there; path → size in bytes.

        `details` are those of every file, by path.

        Raises:
            OSError: it cannot be written.
        """

    def check(self, directory: Path) -> list[str]:
        """In words, what is wrong with what an existing result has beside its tensors."""


def mismatch(entry: Entry, dtype: str, shape: Sequence[int]) -> str | None:
    """In words, how a stored tensor differs from an entry before its data is looked at, if it does."""
    tensor = entry.tensor
    if (dtype, tuple(shape)) == (tensor.dtype, tensor.shape):
        return None
    return f"is {dtype} {list(shape)}, expected {tensor.dtype} {list(tensor.shape)}"
