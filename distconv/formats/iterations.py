"""Iteration directories and the tracker beside them, as in Megatron checkpoints and their DCP relatives.

Owns these names, the listing of a directory in which they are looked for, and the choice of an iteration in it. Knows
nothing of the files of an iteration.
Formats: `megatron/training/checkpointing.py`; MindSpeed-MM keeps DCP in the same way.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path

from distconv.errors import InputError, named, reading
from distconv.runtime.regular_files import read_file

TRACKER_NAME = "latest_checkpointed_iteration.txt"
RELEASE = "release"
# Megatron's version of a checkpoint, which decides how it reads a fused qkv: the key, and the value for this layout.
VERSION_KEY, CHECKPOINT_VERSION = "checkpoint_version", 3.0
# Names by which readers find what an iteration holds, in one format or another.
ITERATION_PARTS = ("mp_rank_*", "*.distcp", "*.metadata", "metadata.json")
# Digits of an iteration; training for a million years needs no more.
_LONGEST_NUMBER = 18
_NAME = re.compile(rf"iter_([0-9]{{7,{_LONGEST_NUMBER}}})")


class Place:
    """A directory whose entries are listed once, since a file server may take long; none if it must not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _entries(self) -> dict[str, os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                return {each.name: each for each in sorted(entries, key=lambda each: each.name)}
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names in it, in order."""
        return tuple(self._entries)

    @cached_property
    def iterations(self) -> tuple[Place, ...]:
        """The iteration directories in it, in the order of names."""
        paths = (self.path / name for name in self._entries)
        return tuple(Place(path) for path in paths if iteration_of(path) is not None and self._is_directory(path.name))

    def _is_directory(self, name: str) -> bool:
        """Whether an entry is a directory, or a link to one; only of a link that is a request of its own."""
        entry = self._entries[name]
        return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and (self.path / name).is_dir())


def iteration_name(iteration: str) -> str | None:
    """The directory name of an iteration: `release`, or `iter_` and seven digits for a number; otherwise `None`."""
    if iteration.isascii() and iteration.isdecimal() and len(iteration) <= _LONGEST_NUMBER:
        return f"iter_{int(iteration):07d}"
    return iteration if iteration == RELEASE else None


def iteration_of(directory: Path) -> str | None:
    """The iteration in the name of a directory: `release`, a number, or `None`."""
    match = _NAME.fullmatch(directory.name)
    return str(int(match[1])) if match else RELEASE if directory.name == RELEASE else None


def iterations_in(directory: Path) -> list[Path]:
    """The iteration directories in a directory, in the order of names."""
    return [each.path for each in Place(directory).iterations]


def iteration_directory(directory: Path, iteration: str | None, key: str = "source") -> Path:
    """The directory of an iteration of that in option `key`; without `iteration`, the tracker's or the only one.

    Raises:
        InputError: no such iteration, or several and no tracker.
    """
    return iteration_in(Place(directory), iteration, key)


def iteration_in(place: Place, iteration: str | None, key: str = "source") -> Path:
    """The same of a directory that may be listed already.

    Raises:
        InputError: as above.
    """
    directory, there = place.path, [each.path.name for each in place.iterations]
    holds = f"it holds {named(there)}" if there else "it holds no iteration"
    tracker = directory / TRACKER_NAME
    if iteration is not None:
        says = f"iteration={iteration}"
    elif tracker.exists():
        with reading(tracker):
            iteration = read_file(tracker).decode(errors="replace").strip()
        says = str(tracker)
    elif len(there) == 1:
        return directory / there[0]
    elif there:
        raise InputError(
            f"{key}={directory}: holds {len(there)} iterations ({named(there)}) and no {TRACKER_NAME} that says which "
            f"is the latest; give iteration={RELEASE} or iteration=NUMBER"
        )
    else:
        raise InputError(f"{key}={directory}: is no checkpoint; expected {TRACKER_NAME}, {RELEASE}/ or iter_*/ in it")
    name = iteration_name(iteration)
    if name is None:
        raise InputError(f"{says}: expected {RELEASE} or the number of an iteration, found {iteration[:40]!r}")
    if name not in there:
        raise InputError(f"{says}: names {name}, which is not in {directory}; {holds}")
    return directory / name


def chosen_iteration(directory: Path, chosen: Path) -> tuple[str, ...]:
    """In words, which of several iterations of a source was chosen by its tracker; nothing if there is no other."""
    if chosen.parent != directory:
        return ()
    others = [path.name for path in iterations_in(directory) if path != chosen]
    if not others:
        return ()
    says = f"as {TRACKER_NAME} says; iteration=N takes another, of {named(others)}"
    return (f"{directory}: of {len(others) + 1} iterations {chosen.name} is converted, {says}",)
