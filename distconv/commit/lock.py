"""Exclusive use of a path by one process: a lock file that a crash does not leave behind for ever.

The kernel's lock on the open file decides, so a process that dies lets go of it. On a file system without such locks
the existence of the file does, and it is stale once its process is known to be dead. Owns the lock file and what it
says of its holder. Knows no targets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

from distconv.runtime.file_systems import LACKING
from distconv.runtime.regular_files import read_at

_NO_LOCKS = LACKING | {errno.ENOLCK}
_TAKEN_ELSEWHERE = {errno.EAGAIN, errno.EACCES}
# Whoever asks for the holder has the lock for a moment.
_ATTEMPTS, _PAUSE_SECONDS = 5, 0.05
_RECORD_BYTES = 4096
_TEXTS = ("work", "host", "since", "boot", "namespace", "began")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds a lock, and what it calls its work.

    `boot`, `namespace` and `began` tell it from another process with its number: the start of the machine, the
    namespace of process numbers, and the clock ticks of the machine when the process began; empty if not known. It is
    not `certain` that it lives where neither the kernel nor the table of processes can tell.
    """

    work: str
    host: str
    pid: int
    since: str
    boot: str = ""
    namespace: str = ""
    began: str = ""
    certain: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_dead(self) -> bool:
        """Whether it is known to have ended, which only its own host can tell."""
        if self.host != socket.gethostname():
            return False
        if self.boot != _content("/proc/sys/kernel/random/boot_id"):
            return True
        if self.namespace != _namespace():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return self.began != _began(self.pid)


class Lock:
    """A lock that this process holds until it releases it or ends."""

    def __init__(self, path: Path, stream: FileIO) -> None:
        self._path = path
        self._stream = stream

    def release(self) -> None:
        """Remove the lock file, unless it is another's by now; it can be done again after an interruption."""
        if self._stream.closed:
            return
        with contextlib.suppress(OSError):
            if _is_at(self._path, self._stream):
                self._path.unlink()
        with contextlib.suppress(OSError):
            # It is closed then, too, and nothing of worth was to be written.
            self._stream.close()


def take(path: Path, work: str) -> Lock | Holder:
    """Take the lock for this process, or find out who holds it.

    Raises:
        OSError: the lock file cannot be made; `FileNotFoundError`: its directory is not there (any more).
    """
    for _ in range(_ATTEMPTS):
        found = _attempt(path, work)
        if isinstance(found, Lock):
            return found
        time.sleep(_PAUSE_SECONDS)
    return found or _UNKNOWN


def holder(path: Path) -> Holder | None:
    """Who holds the lock, if anybody does; a lock file of a process that died is held by nobody."""
    try:
        with open(path, "rb", buffering=0) as stream:
            taken = _locked(stream, fcntl.LOCK_SH)
            found = _read(stream)
    except FileNotFoundError:
        return None
    except OSError:
        return _UNKNOWN
    if taken is None:
        return None if found is not None and found.is_dead() else _doubtful(found)
    return None if taken else found or _UNKNOWN


_UNKNOWN = Holder(work="", host="a host that is not known", pid=0, since="just now")


def _attempt(path: Path, work: str) -> Lock | Holder | None:
    """One attempt to take the lock; None: it changed hands meanwhile, or its holder is just writing its name."""
    created = True
    try:
        stream = open(path, "xb", buffering=0)  # noqa: SIM115 - the lock lasts as long as the file is open
    except FileExistsError:
        created = False
        try:
            stream = open(path, "r+b", buffering=0)  # noqa: SIM115 - as above
        except PermissionError:
            # Another user's.
            if (found := holder(path)) is None:
                raise
            return found
    try:
        taken = _locked(stream, fcntl.LOCK_EX)
        if taken is None and not created:
            found = _read(stream)
            if found is not None and found.is_dead():
                _remove_stale(path, stream, work)
                found = None
            else:
                found = _doubtful(found)
        elif taken is False:
            found = _read(stream)
        elif not _is_at(path, stream):
            found = None
        else:
            stream.truncate(0)
            record = json.dumps(asdict(_own(work))).encode()
            while record:
                record = record[stream.write(record) :]
            return Lock(path, stream)
    except BaseException:
        if created and _is_at(path, stream):
            path.unlink()
        stream.close()
        raise
    stream.close()
    return found


def _locked(stream: FileIO, kind: int) -> bool | None:
    """Lock an open file without waiting: whether that worked; None: its file system knows no locks."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in _TAKEN_ELSEWHERE:
            return False
        raise
    return True


def _remove_stale(path: Path, stream: FileIO, work: str) -> None:
    """Take the lock file of a dead process away; one that has replaced it meanwhile is put back."""
    aside = path.with_name(f"{path.name}-{work}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if _is_at(aside, stream):
            aside.unlink()
        else:
            os.rename(aside, path)


def _is_at(path: Path, stream: FileIO) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _read(stream: FileIO) -> Holder | None:
    """The holder that a lock file names; None: it is not, or not yet, written."""
    try:
        content = json.loads(read_at(stream.fileno(), _RECORD_BYTES, 0))
    except ValueError:
        return None
    return _parsed(content) if isinstance(content, Mapping) else None


def _parsed(content: Mapping[str, Any]) -> Holder | None:
    pid = content.get("pid")
    texts = {key: content.get(key, "") for key in _TEXTS}
    if type(pid) is not int or not all(isinstance(value, str) for value in texts.values()):
        return None
    return Holder(pid=pid, **texts)


def _doubtful(found: Holder | None) -> Holder:
    """The holder as the lock file has it, where nobody can tell whether it lives."""
    found = found or _UNKNOWN
    own = _own("")
    return replace(found, certain=(found.host, found.boot, found.namespace) == (own.host, own.boot, own.namespace))


def _own(work: str) -> Holder:
    return Holder(
        work=work,
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        boot=_content("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        began=_began(os.getpid()),
    )


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process began; the fields of its `stat` follow its name, which can hold anything but ends in a bracket."""
    return " ".join(_content(f"/proc/{pid}/stat").rpartition(")")[2].split()[19:20])
