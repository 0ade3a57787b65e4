"""Iteration directories and the tracker beside them, as in Megatron checkpoints and their DCP relatives.

Owns these names, and the choice of an iteration in a directory. Knows nothing of the files of an iteration.
Formats: `megatron/training/checkpointing.py`; MindSpeed-MM keeps DCP in the same way.
"""

from __future__ import annotations

import os
import re
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


def names_in(directory: Path) -> list[str]:
    """The names in a directory; none if it is no directory, or must not be read."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


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
    # By its name first: to ask for its kind can be a request to a file server.
    return sorted(
        path
        for path in map(directory.joinpath, names_in(directory))
        if iteration_of(path) is not None and path.is_dir()
    )


def iteration_directory(directory: Path, iteration: str | None, key: str = "source") -> Path:
    """The directory of an iteration of that in option `key`; without `iteration`, the tracker's or the only one.

    Raises:
        InputError: no such iteration, or several and no tracker.
    """
    there = [path.name for path in iterations_in(directory)]
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
    others = [path.name for path in iterations_in(directory) if path != chosen]
    if chosen.parent != directory or not others:
        return ()
    says = f"as {TRACKER_NAME} says; iteration=N takes another, of {named(others)}"
    return (f"{directory}: of {len(others) + 1} iterations {chosen.name} is converted, {says}",)
