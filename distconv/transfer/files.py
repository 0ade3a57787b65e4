"""Open files of a result, and the bytes in files: descriptors, positioned reads and writes.

Owns the system calls. Knows neither tensors nor formats; files of a source are opened by `sources`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from distconv.errors import LostError
from distconv.runtime.file_systems import LACKING
from distconv.runtime.regular_files import open_descriptor

_NO_KERNEL_COPY = LACKING | {errno.EXDEV, errno.ETXTBSY}


class OpenFiles:
    """File descriptors by path, opened when first used and closed at the end; safe to use from several threads."""

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> int:
        """The descriptor of a file, opened on first use.

        Raises:
            OSError: the file cannot be opened.
        """
        with self._lock:
            if path not in self._open:
                self._open[path] = open_descriptor(path, self._flags)
            return self._open[path]

    def opened(self, path: str) -> AbstractContextManager[int]:
        """The descriptor as `get` gives it, which outlives the context."""
        return nullcontext(self.get(path))

    def items(self) -> Iterator[tuple[str, int]]:
        """Path and descriptor of each open file."""
        yield from self._open.items()

    def close(self, path: str) -> None:
        """Close a file, which nobody uses any more, if it is open."""
        with self._lock:
            descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # A thread that hangs may still use them, and write into what would get their numbers.
        if not isinstance(error, LostError):
            for descriptor in self._open.values():
                os.close(descriptor)
        self._open.clear()


def read_into(descriptor: int, offset: int, buffer: memoryview) -> None:
    """Fill the buffer from a file.

    Raises:
        OSError: the file ends before that.
    """
    done = 0
    while done < len(buffer):
        got = os.preadv(descriptor, [buffer[done:]], offset + done)
        if got == 0:
            raise OSError(errno.EIO, f"the file ends at byte {offset + done}: truncated while it was being read")
        done += got


def write_from(descriptor: int, offset: int, *buffers: memoryview) -> None:
    """Write all of the buffers to a file, one after the other."""
    left = [buffer for buffer in buffers if len(buffer)]
    while left:
        done = os.pwritev(descriptor, left, offset)
        offset += done
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if left:
            left[0] = left[0][done:]


def copy_in_kernel(source: int, source_offset: int, target: int, offset: int, nbytes: int) -> int:
    """Copy bytes from file to file without passing through this program; how many, which may be none.

    Raises:
        OSError: a read or a write failed; not when the file systems merely cannot do it.
    """
    done = 0
    while done < nbytes:
        try:
            copied = os.copy_file_range(source, target, nbytes - done, source_offset + done, offset + done)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            break
        if copied == 0:
            break
        done += copied
    return done
