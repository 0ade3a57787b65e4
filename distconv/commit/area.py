"""The hidden names of jobs: a lock file for each target, and a directory of work for each job, beside the result.

Owns these names. Touches nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_WORK_NAME = re.compile(r"\.distconv-(?:(?P<name>.+)-)?[0-9a-f]{8}", re.DOTALL)
_LOCK_NAME = re.compile(r"\.distconv\.(?:(?P<name>.+)\.)?lock", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Area:
    """What one lock covers: a result of this name in a directory or (`None`) all iterations, which share a tracker."""

    home: Path
    name: str | None

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.home / (".distconv.lock" if self.name is None else f".distconv.{self.name}.lock")

    def work(self, token: str) -> Path:
        """The directory of work of a job; `token` is eight hexadecimal digits of its own."""
        return self.home / (f".distconv-{token}" if self.name is None else f".distconv-{self.name}-{token}")

    def works(self) -> list[Path]:
        """The directories of work that are there.

        Raises:
            OSError: the directory cannot be read.
        """
        return [path for path in _hidden(self.home) if _area_of(path, _WORK_NAME) == self and _is_directory(path)]

    def is_used(self) -> bool:
        """Whether any job has left, or made, anything there."""
        return os.path.lexists(self.lock) or bool(self.works())


def areas(directory: Path) -> list[Area]:
    """The areas of a target directory in which there is something: those in it, and the one beside it.

    Raises:
        OSError: a directory cannot be read.
    """
    directory = Path(os.path.realpath(directory))
    beside = Area(home=directory.parent, name=directory.name)
    found = {area for path in _hidden(directory) for kind in (_WORK_NAME, _LOCK_NAME) if (area := _area_of(path, kind))}
    return [each for each in (beside, *sorted(found, key=lambda area: area.name or "")) if each.is_used()]


def is_work(path: Path) -> bool:
    """Whether a path is that of a directory of work."""
    return _WORK_NAME.fullmatch(path.name) is not None


def is_hidden(name: str) -> bool:
    """Whether a name is one that jobs give to what no user looks at: directories of work and lock files."""
    return any(kind.fullmatch(name) for kind in (_WORK_NAME, _LOCK_NAME))


def _area_of(path: Path, kind: re.Pattern[str]) -> Area | None:
    match = kind.fullmatch(path.name)
    return None if match is None else Area(home=path.parent, name=match["name"])


def _hidden(directory: Path) -> list[Path]:
    try:
        return [directory / name for name in sorted(os.listdir(directory)) if name.startswith(".distconv")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
