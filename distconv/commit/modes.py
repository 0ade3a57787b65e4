"""The permissions of a result, where a site wants others than the umask of its users gives.

Owns how they are set: on what a job has made alone, before it gets its name. Never touches what was there.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_EXECUTE, _READ = 0o111, 0o444


@dataclass(frozen=True, kw_only=True)
class Modes:
    """The permissions of files and of directories; `None`: as the umask has them.

    Whoever may read a file that is executable may execute it, too.
    """

    file: int | None = None
    directory: int | None = None

    @classmethod
    def of(cls, *, file: str | None, directory: str | None) -> Modes:
        """The permissions in octal digits."""
        return cls(
            file=None if file is None else int(file, 8), directory=None if directory is None else int(directory, 8)
        )

    def set_below(self, place: Path) -> None:
        """Set the permissions of a directory and of all that is in it.

        Raises:
            OSError: the file system refuses them.
        """
        if self == Modes():
            return
        for parent, _, files in os.walk(place, topdown=False):
            for name in files:
                self.set_file(Path(parent, name))
            self.set_directory(Path(parent))

    def set_file(self, path: Path) -> None:
        """Set the permissions of a file."""
        if self.file is not None:
            executable = is_executable(path)
            os.chmod(path, self.file)
            if executable:
                make_executable(path)

    def set_directory(self, path: Path) -> None:
        """Set the permissions of a directory."""
        if self.directory is not None:
            os.chmod(path, self.directory)


def is_executable(path: str | Path) -> bool:
    """Whether anybody may execute a file."""
    return bool(os.stat(path).st_mode & _EXECUTE)


def make_executable(path: Path) -> None:
    """Let those execute a file who may read it."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    wanted = mode | (mode & _READ) >> 2
    # Where every file is executable, the file system may not have modes to set.
    if wanted != mode:
        os.chmod(path, wanted)
