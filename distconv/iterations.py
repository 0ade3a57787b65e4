"""Directories that hold one iteration each, and the tracker beside them, as Megatron and its DCP relatives have them.

Owns these names, and which iteration of a directory is meant. Knows nothing of what an iteration holds.
Formats: `megatron/training/checkpointing.py`; MindSpeed-MM keeps DCP in the same way.
"""

from __future__ import annotations

from pathlib import Path

from distconv.errors import InputError, named

TRACKER_NAME = "latest_checkpointed_iteration.txt"
RELEASE = "release"
# What Megatron calls the meaning of a fused qkv; it refuses or reinterprets another one.
CHECKPOINT_VERSION = 3.0


def iteration_name(iteration: str) -> str | None:
    """`release`, or `iter_` and seven digits for a number; None for anything else."""
    if iteration.isascii() and iteration.isdecimal():
        return f"iter_{int(iteration):07d}"
    return iteration if iteration == RELEASE else None


def iteration_directory(directory: Path, iteration: str | None, key: str) -> Path:
    """The directory of an iteration in the one that configuration key `key` names; given None, the tracker decides.

    Raises:
        InputError: nothing says which iteration, or it is not there.
    """
    saved = sorted(path.name for path in directory.glob("*") if path.name == RELEASE or path.match("iter_*"))
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
