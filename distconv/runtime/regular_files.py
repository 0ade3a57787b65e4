"""Opening files that a job reads: regular ones.

Owns that no read waits for ever, that none is endless, and that none ends early: a pipe, a device or a directory in the
place of a file is an error of the operating system like others. Knows nothing of what files hold.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from distconv.runtime.progress import reached

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_descriptor(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a regular file.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    reached(path)
    # Else to open a pipe waits for its other end.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return descriptor
    os.close(descriptor)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, f"expected a regular file, found {_KINDS.get(kind, 'something else')}", str(path))


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened for reading.

    Raises:
        OSError: as `open_descriptor`.
    """
    return os.fdopen(open_descriptor(path), "rb")


def read_at(descriptor: int, nbytes: int, offset: int) -> bytes:
    """The bytes of an open file from an offset on: so many, or fewer where it ends before.

    A single call of the system may give fewer at any place: of more than 2 GiB it does.

    Raises:
        OSError: it cannot be read.
    """
    data = os.pread(descriptor, nbytes, offset)
    pieces = [data]
    while data and (nbytes := nbytes - len(data)):
        offset += len(data)
        data = os.pread(descriptor, nbytes, offset)
        pieces.append(data)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_file(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_descriptor`, or it cannot be read.
    """
    with open_file(path) as stream:
        return stream.read()
