"""Durability: what must survive a loss of power once it has been said to be done.

Owns the system calls that write through to the disk. Knows nothing of what files hold.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from distconv.runtime.file_systems import LACKING
from distconv.runtime.progress import reached

# File systems that keep no names of their own, such as some in user space, synchronise files alone.
_FILES_ALONE = LACKING | {errno.EBADF}


def synchronise(files: Iterable[tuple[str, int]]) -> None:
    """Make the contents of open files, given as path and descriptor, and the directories that name them, durable.

    Raises:
        OSError: the system cannot.
    """
    for path, descriptor in files:
        reached(path)
        os.fsync(descriptor)
        synchronise_directory(os.path.dirname(path))


def synchronise_directory(path: str) -> None:
    """Make the names in a directory durable, as far as its file system has a call for that.

    Raises:
        OSError: the system failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FILES_ALONE:
            raise
    finally:
        os.close(descriptor)
