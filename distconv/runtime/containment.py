"""Whether one path lies in another, however both are named.

Symbolic links are followed, and what is mounted in two places is the same in both. Owns the comparison of paths by
device and inode, and what the system says of mounts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A mount point, and the directory of which file system it shows."""

    point: Path
    device: str
    root: Path


def is_inside(path: Path, directory: Path) -> bool:
    """Whether a path, which need not be there, is this directory or lies in it."""
    way, end = _way(path), Path(os.path.realpath(directory))
    identity = _identity(end)
    if end in way or (identity is not None and any(_identity(place) == identity for place in way)):
        return True
    # What is mounted may be a directory that is deeper: then no directory on the way is the one that is asked for.
    place = next(each for each in way if os.path.exists(each))
    there, wanted = _located(place), _located(end)
    if there is None or wanted is None or there.device != wanted.device or wanted.root not in there.root.parents:
        return False
    return _identity(end / there.root.relative_to(wanted.root)) == _identity(place)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted there, a directory of the same file system included."""
    return os.path.ismount(path) or any(mount.point == Path(os.path.realpath(path)) for mount in _mounts())


def _way(path: Path) -> list[Path]:
    """What a path leads to, and every directory on the way to it, without symbolic links."""
    end = Path(os.path.realpath(path))
    return [end, *end.parents]


def _identity(path: Path) -> tuple[int, int] | None:
    """The device and the inode of what a path leads to."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _located(path: Path) -> Mount | None:
    """A path without symbolic links as a directory of its file system; None: the system does not say."""
    mounts = [mount for mount in _mounts() if mount.point in (path, *path.parents)]
    if not mounts:
        return None
    # Of several at one point, the last hides the others.
    mount = max(reversed(mounts), key=lambda each: len(each.point.parts))
    return Mount(point=path, device=mount.device, root=mount.root / path.relative_to(mount.point))


def _mounts() -> Sequence[Mount]:
    """What is mounted where, as `/proc/self/mountinfo` has it."""
    try:
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines()
    except OSError:
        return ()
    return [
        Mount(point=_unquoted(point), device=device, root=_unquoted(root))
        for _, _, device, root, point, *_ in map(str.split, lines)
    ]


def _unquoted(text: str) -> Path:
    """A path in which blanks and backslashes are octal numbers."""
    return Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text))
