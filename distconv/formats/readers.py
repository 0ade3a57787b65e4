"""The readers that programs use for results, as what `verify=true` compares a result with its plan through.

Owns the interface of a reader and what an error in one becomes. The readers of a format are a module in its folder that
imports torch, and is imported only when they are asked for. No other module reads a checkpoint with code of others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distconv.errors import DistconvError, InputError, ReaderError, system_problem
from distconv.formats.records import OutputFile
from distconv.tensors.virtual import Index

# Key and name of an entry.
Key = tuple[str, str]
# Element type, under torch's name, and shape; of what is no tensor its type, and no dims.
Form = tuple[str, Index]
# Messages of torch have pages of advice.
_LONGEST = 300


@dataclass(frozen=True, kw_only=True)
class ReadFile:
    """A file as a reader gives it: the forms of its tensors by (key, name) of entries.

    `data` maps a key to the bytes of its tensor, in row-major order; it is called from several threads, and raises
    `ReaderError`. `is_mapped`: these bytes are a mapping of the file. `differences`: what else of the file is not as
    planned, in words.
    """

    forms: Mapping[Key, Form]
    data: Callable[[Key], memoryview]
    is_mapped: bool
    differences: Sequence[str] = ()


class Reader(ABC):
    """The reader of a planned result, from one directory; `name`: what users call it."""

    name: str

    @abstractmethod
    def open(self, directory: Path, file: OutputFile) -> ReadFile:
        """A file of the result in `directory`.

        Raises:
            ReaderError: the reader refuses it, or fails.
        """

    def beside(self, directory: Path) -> list[str]:  # noqa: ARG002 - for others
        """What of the result is not as planned, in words, as the reader takes it from files beside the tensors.

        Raises:
            ReaderError: the reader refuses one of them, or fails.
        """
        return []


@contextmanager
def reading_by(name: str, path: Path) -> Iterator[None]:
    """Turn whatever the code of a reader raises about `path` into `ReaderError`."""
    try:
        yield
    except (DistconvError, MemoryError):
        raise
    except OSError as error:
        raise ReaderError(system_problem(f"{path}: {name} cannot read it", error)) from error
    except Exception as error:
        said = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise ReaderError(f"{path}: {name} does not read it: {said}") from error


@contextmanager
def importing(package: str) -> Iterator[None]:
    """Turn a package that is missing or broken into `InputError`."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"verify=true: reads the result with {package}, which cannot be imported ({error}); "
            f"pip install {package}, or leave verify out"
        ) from error
