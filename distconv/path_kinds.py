"""The kinds of option values that are paths: one, several, and patterns or lists of several.

Owns what fits, and what records hold. Expands nothing, and looks at no file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from distconv.kinds import Value

# What a text begins with that is the path of a list of directories.
LIST_MARK = "@"
# Of a path that is empty.
_UNSET = "is a variable not set?"
T = TypeVar("T")


class PathKind(Value[T], Generic[T]):
    """A kind of paths, which on a command line are taken as they are, but for what a shell expands."""

    def hint(self, value: Any) -> str:
        """That a variable of a script may not be set."""
        return _UNSET if value == "" else ""


@dataclass(frozen=True)
class FilePath(PathKind[Path]):
    """Paths, of directories or files; nothing in them is expanded."""

    example: str
    expected = "a path"

    def fits(self, value: Any) -> bool:
        """Whether the value is a path, or the text of one."""
        return isinstance(value, (str, os.PathLike)) and value != ""

    def held(self, value: Any) -> Path:
        """The value as a path."""
        return Path(value)


@dataclass(frozen=True)
class FilePaths(PathKind[tuple[Path, ...]]):
    """One path, or a list of them; nothing in them is expanded."""

    example: str
    expected = "a path, or a list of paths"

    def fits(self, value: Any) -> bool:
        """Whether the value is a path or the text of one, or a list of them that is not empty."""
        several = _several(value)
        return bool(several) and all(isinstance(each, (str, os.PathLike)) and each != "" for each in several)

    def held(self, value: Any) -> tuple[Path, ...]:
        """The paths."""
        return tuple(map(Path, _several(value)))


@dataclass(frozen=True)
class Directories(PathKind["str | tuple[str, ...]"]):
    """Several directories: a text, which is a pattern or names a list, or the paths themselves; held as texts."""

    expected = "a pattern of paths, @FILE, or a list of paths"
    example = "PATTERN"

    def fits(self, value: Any) -> bool:
        """Whether the value is text, a path, or a list of paths."""
        return all(isinstance(each, (str, os.PathLike)) and each != "" for each in _several(value))

    def held(self, value: Any) -> str | tuple[str, ...]:
        """The text, or the texts of the paths."""
        return value if isinstance(value, str) else tuple(map(os.fspath, _several(value)))


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
