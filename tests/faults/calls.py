"""Calls of the operating system that fail, in a process of its own: what is replaced here is never put back.

Owns which calls a program makes on files below a directory, of which kind each is, and how one of them, or all, fail.
Streams are replaced by ones whose raw layer is written in Python, so that each of their reads and writes is a call,
too, which can do less than it was asked for. Knows nothing of conversions.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import io
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from distconv.commit import exchange

EIO, ENOSPC, EDQUOT, ESTALE, EACCES = errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EACCES
# In place of an error: it does, and says that it did, less than it was asked for.
SHORT = "less"

_FULL, _LOOKING, _READING = (EIO, ENOSPC, EDQUOT), (EIO, ESTALE, EACCES), (EIO, ESTALE, SHORT)
_NAMING = (EIO, ENOSPC, EDQUOT, ESTALE, EACCES)
# How a call of each kind fails: of functions of `os` first.
OF_OS: dict[str, tuple[int | str, ...]] = {
    "open": (EIO, EACCES, ENOSPC, ESTALE, errno.EMFILE),
    "close": (EIO, EDQUOT),
    "stat": _LOOKING,
    "lstat": _LOOKING,
    "fstat": (EIO, ESTALE),
    "statvfs": _LOOKING,
    "access": _LOOKING,
    "listdir": _LOOKING,
    "scandir": _LOOKING,
    "readlink": _LOOKING,
    "read": _READING,
    "pread": _READING,
    "preadv": _READING,
    "write": (*_FULL, SHORT),
    "pwrite": (*_FULL, SHORT),
    "pwritev": (*_FULL, SHORT),
    "copy_file_range": (*_FULL, ESTALE, SHORT),
    "sendfile": (*_FULL, ESTALE, SHORT),
    "posix_fallocate": _FULL,
    "ftruncate": _FULL,
    "truncate": _FULL,
    "fsync": _FULL,
    "fdatasync": _FULL,
    "mkdir": _NAMING,
    "rmdir": (EIO, EACCES, errno.EBUSY),
    "rename": (*_NAMING, errno.EBUSY),
    "replace": (*_NAMING, errno.EBUSY),
    "unlink": (EIO, EACCES, errno.EBUSY),
    "link": _NAMING,
    "symlink": _NAMING,
    "chmod": (EIO, errno.EPERM, errno.EROFS),
    "utime": (EIO, errno.EPERM),
}
OTHERS: dict[str, tuple[int | str, ...]] = {
    "flock": (EIO, errno.ENOLCK),
    "exchange": (*_NAMING, errno.EBUSY),
    "fsync of a directory": _FULL,
    "stream open": OF_OS["open"],
    "stream read": _READING,
    "stream write": (*_FULL, SHORT),
    "stream truncate": _FULL,
    "stream close": (EIO, EDQUOT),
}
KINDS = OF_OS | OTHERS
# How file systems refuse what they do not have; and the kinds that a job can do without.
_NONE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
REFUSED = {
    "copy_file_range": (*_NONE, errno.EXDEV, errno.EPERM, errno.ETXTBSY, errno.ENOTTY),
    "sendfile": (*_NONE, errno.EXDEV, errno.EPERM, errno.ENOTTY),
    "exchange": (*_NONE, errno.EXDEV, errno.EPERM, errno.ENOTTY),
    "flock": (*_NONE, errno.EPERM, errno.ENOTTY, errno.ENOLCK),
    "fsync of a directory": (*_NONE, errno.EBADF, errno.ENOTTY, errno.EPERM),
    "fsync": (errno.EINVAL,),
    "stream truncate": (errno.EPERM, errno.EFBIG),
    "chmod": (errno.EPERM, errno.EROFS),
    "statvfs": (errno.ENOSYS,),
    "link": (*_NONE, errno.EPERM, errno.EMLINK),
    "posix_fallocate": _NONE,
}
DISPENSABLE = {"copy_file_range", "sendfile", "exchange", "flock", "fsync of a directory", "link", "posix_fallocate"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Which calls of a kind fail, and how: the one of a number, counted from 1, or (`None`) all of them."""

    kind: str
    number: int | None
    how: int | str

    def __str__(self) -> str:
        how = self.how if isinstance(self.how, str) else errno.errorcode[self.how]
        return f"{self.kind} {self.number or 'always'}: {how}"


class Calls:
    """The calls of this process on files below a directory: counted by kind, some of them failing."""

    def __init__(self, directory: str, fault: Fault | None = None) -> None:
        self._directory, self._fault = directory, fault
        self._made: Counter[str] = Counter()
        self._lock, self._readlink, self._fstat = threading.Lock(), os.readlink, os.fstat
        self.failed = 0

    @property
    def counts(self) -> dict[str, int]:
        """The number of calls made, by kind."""
        return dict(self._made)

    def replace(self) -> None:
        """Replace the functions that make calls, for as long as this process lives."""
        for name in OF_OS:
            setattr(os, name, self._function(name, getattr(os, name)))
        for module in (builtins, io):
            module.open = self._open  # type: ignore[attr-defined]
        flock = fcntl.flock

        def locked(file: Any, operation: int) -> Any:
            self.check("flock", file if isinstance(file, int) else file.fileno())
            return flock(file, operation)

        fcntl.flock = locked
        self._replace_exchange()

    def check(self, kind: str, file: Any, within: Any = None) -> bool:
        """Count a call on a path or a descriptor, relative to the directory `within`; whether it shall do less.

        Raises:
            OSError: the call is to fail.
        """
        path = self._path(file, within)
        if path is None:
            return False
        with self._lock:
            self._made[kind] += 1
            number = self._made[kind]
        fault = self._fault
        if fault is None or fault.kind != kind or fault.number not in (None, number):
            return False
        self.failed += 1
        if fault.how == SHORT:
            return True
        assert isinstance(fault.how, int)
        raise OSError(fault.how, os.strerror(fault.how), *(() if isinstance(file, int) else (os.fspath(file),)))

    def _path(self, file: Any, within: Any) -> str | None:
        """The absolute path, if it is below the directory."""
        if isinstance(file, int):
            try:
                found = self._readlink(f"/proc/self/fd/{file}") if file >= 0 else ""
            except OSError:
                return None
        elif isinstance(file, str | bytes | os.PathLike):
            found = os.fsdecode(file)
            if within is not None:
                found = os.path.join(self._path(within, None) or "/", found)
            found = os.path.abspath(found)
        else:
            return None
        return found if found.startswith(self._directory) else None

    def _function(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **keywords: Any) -> Any:
            # Two-handed ones are about what they write, the last of two names or the first descriptor.
            file = arguments[1 if name in ("copy_file_range", "link", "symlink") else 0] if arguments else "."
            kind = "fsync of a directory" if name == "fsync" and self._is_directory(file) else name
            if name == "close":
                # What is closed by a call that fails is closed all the same.
                path = self._path(file, None)
                call(file)
                self.check(kind, path)
                return None
            if self.check(kind, file, keywords.get("dir_fd")):
                arguments = _less(name, arguments)
            return call(*arguments, **keywords)

        return checked

    def _is_directory(self, descriptor: int) -> bool:
        return stat.S_ISDIR(self._fstat(descriptor).st_mode)

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,  # noqa: FBT001, FBT002 - the signature of open
        opener: Any = None,
    ) -> Any:
        """As `open`, over a raw stream whose calls are counted."""
        if self._path(file, None) is None:
            return _OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            self.check("stream open", file)
        raw = _Raw(self, file, mode.replace("t", "").replace("b", ""), closefd, opener)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def _replace_exchange(self) -> None:
        """Let the call of the library of C fail as it does, by its result and `errno`."""

        def library(name: Any, **keywords: Any) -> Any:
            call = ctypes.CDLL(name, **keywords).renameat2

            def renameat2(*arguments: Any) -> int:
                try:
                    self.check("exchange", arguments[1])
                except OSError as error:
                    ctypes.set_errno(error.errno or 0)
                    return -1
                return int(call(*arguments))

            return SimpleNamespace(renameat2=renameat2)

        names = {"CDLL": library, "get_errno": ctypes.get_errno, "c_uint": ctypes.c_uint}
        exchange.ctypes = SimpleNamespace(**names)  # type: ignore[assignment]


_OPEN = io.open


class _Raw(io.FileIO):
    """A raw stream whose reads and writes are calls that can fail, or do less."""

    def __init__(self, calls: Calls, file: Any, mode: str, closefd: bool, opener: Any) -> None:  # noqa: FBT001
        self._calls: Calls | None = None
        super().__init__(file, mode, closefd, opener)
        self._calls = calls

    def _check(self, kind: str) -> bool:
        return self._calls is not None and self._calls.check(f"stream {kind}", self.fileno())

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        if size is None or size < 0:
            return self.readall()
        buffer = bytearray(size)
        got = self.readinto(buffer)
        return bytes(buffer[:got])

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._check("read") and len(view) > 1:
            view = view[: len(view) // 2]
        return super().readinto(view)

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(1 << 16):
            pieces.append(piece)
        return b"".join(pieces)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._check("write") and len(view) > 1:
            view = view[: len(view) // 2]
        return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        self._check("truncate")
        return super().truncate(size)

    def close(self) -> None:
        if self.closed:
            return
        calls, self._calls = self._calls, None
        path = None if calls is None else calls._path(self.fileno(), None)
        super().close()
        if calls is not None:
            calls.check("stream close", path)


def _less(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call that is asked for half as much."""
    if name in ("preadv", "pwritev"):
        buffer = arguments[1][0]
        return (arguments[0], [buffer[: max(len(buffer) // 2, 1)]], *arguments[2:])
    if name in ("write", "pwrite"):
        return (arguments[0], arguments[1][: max(len(arguments[1]) // 2, 1)], *arguments[2:])
    at = {"read": 1, "pread": 1, "copy_file_range": 2, "sendfile": 3}[name]
    return (*arguments[:at], max(arguments[at] // 2, 1), *arguments[at + 1 :])
