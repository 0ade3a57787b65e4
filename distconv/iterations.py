"""Which of the iterations in a directory that training saved to is meant: by the user, or by its tracker file.

Knows how training names these directories, nothing of what they hold.
"""

from __future__ import annotations

from pathlib import Path

from distconv.errors import InputError, named

TRACKER_NAME = "latest_checkpointed_iteration.txt"


def iteration_name(iteration: str) -> str | None:
    """`release`, or `iter_` and seven digits for a number; None for anything else."""
    if iteration.isascii() and iteration.isdecimal():
        return f"iter_{int(iteration):07d}"
    return iteration if iteration == "release" else None


def iteration_directory(directory: Path, iteration: str | None, key: str) -> Path:
    """The directory of an iteration in the one that configuration key `key` names; given None, the tracker decides.

    Raises:
        InputError: nothing says which iteration, or it is not there.
    """
    saved = sorted(path.name for path in directory.glob("*") if path.name == "release" or path.match("iter_*"))
    there = f"{key}={directory} holds {named(saved)}" if saved else f"{key}={directory} holds no iteration"
    if iteration is None:
        tracker = directory / TRACKER_NAME
        try:
            iteration = tracker.read_text(errors="replace").strip()
        except FileNotFoundError:
            raise InputError(f"{key}={directory}: is no checkpoint, and has no {TRACKER_NAME}; {there}") from None
        except OSError as error:
            raise InputError(f"{tracker}: cannot be read: {error.strerror}") from None
        said = f"{tracker}: says {iteration[:40]!r}"
    else:
        said = f"iteration={iteration}"
    name = iteration_name(iteration)
    if name is None:
        raise InputError(f"{said}; expected release or the number of an iteration; {there}")
    if not (directory / name).is_dir():
        raise InputError(f"{said}, but there is no {directory / name}; {there}")
    return directory / name
