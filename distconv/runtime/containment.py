"""Whether one path lies in another, however both are named.

Symbolic links are followed, and what is mounted in two places is the same in both. Owns the comparison of paths by
device and inode.
"""

from __future__ import annotations

import os
from pathlib import Path

from distconv.runtime.mounts import Mount, mount_of, mounts


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
    return os.path.ismount(path) or any(mount.point == Path(os.path.realpath(path)) for mount in mounts())


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
    mount = mount_of(path, mounts())
    if mount is None:
        return None
    return Mount(point=path, device=mount.device, root=mount.root / path.relative_to(mount.point))
