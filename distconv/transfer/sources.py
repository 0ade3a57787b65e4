"""The files of a source as one process reads them: held open as far as limits allow, and compared again and again.

Owns that no byte is taken from another file than the one that was planned with: each is compared whenever it is opened,
and what was looked at or read is compared once more at the end. Never writes.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType

from distconv.errors import SourceChangedError, printable, system_problem
from distconv.runtime.hand_out import AT_ONCE, on_threads
from distconv.runtime.identity import changes, look_again, this_process
from distconv.runtime.regular_files import open_descriptor, read_at
from distconv.tensors.stored import SourceFile

_PIECE = 1024 * 1024
_TOO_MANY = {errno.EMFILE, errno.ENFILE}


@dataclass(slots=True)
class _Held:
    """A descriptor, and how many threads read from it now."""

    descriptor: int
    users: int = 0


class SourceFiles:
    """The files of a source, opened when first used and closed together; safe to use from several threads.

    `looked_at` gives the files that the job was planned with, `limit` how many are held open at most: by default half
    of what this process may have. Of more, the one that was used longest ago is closed, and compared when it is opened
    again.
    """

    def __init__(self, looked_at: Callable[[], Iterable[SourceFile]] = tuple, limit: int | None = None) -> None:
        self._looked_at = looked_at
        self._limit = _half_of_the_descriptors() if limit is None else limit
        self._held: OrderedDict[SourceFile, _Held] = OrderedDict()
        # The files that were read, and each path as this process found it first.
        self._read: dict[SourceFile, None] = {}
        self._first: dict[str, SourceFile] = {}
        self._changed: dict[SourceFile, str] | None = None
        # One lock for each file that is opened: that can take long, and hang, which others must not wait for.
        self._opening: dict[SourceFile, threading.Lock] = {}
        self._being_opened = 0
        self._lock, self._comparing = threading.Lock(), threading.Lock()

    @contextmanager
    def opened(self, file: SourceFile) -> Iterator[int]:
        """The descriptor of a file, which stays open inside the context.

        Raises:
            OSError: the file cannot be opened.
            SourceChangedError: it is not as it was when it was looked at; all files that are not are named.
        """
        held = self._taken(file)
        try:
            yield held.descriptor
        finally:
            with self._lock:
                held.users -= 1

    def pieces(self, file: SourceFile) -> Iterator[bytes]:
        """The content of a file, in pieces of some size; raises as `opened`."""
        with self.opened(file) as descriptor:
            position = 0
            while piece := read_at(descriptor, _PIECE, position):
                position += len(piece)
                yield piece

    def check(self, threads: int) -> None:
        """Compare again what this process looked at, and what it read.

        A path is opened anew: network file systems promise current attributes for that, not for what is open, and the
        file under a name may be another by now. The header is read again, since it costs little beside the data.

        Raises:
            SourceChangedError: files that are not as they were, all of them.
        """
        own = (each for each in self._looked_at() if each.inode is not None and each.inode.process == this_process())
        _raise_if(on_threads(self._change, list({**dict.fromkeys(own), **self._read}), threads))

    def check_these(self, files: Iterable[SourceFile]) -> None:
        """Compare some files again that were read when others had been compared.

        Raises:
            SourceChangedError: as `check`.
        """
        _raise_if(map(self._change, files))

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # A thread that hangs in a read keeps its file: its number would become that of another.
        on_threads(_close, [held.descriptor for held in self._held.values() if not held.users], AT_ONCE)
        self._held.clear()

    def _taken(self, file: SourceFile) -> _Held:
        """The descriptor of a file with one more user."""
        held = self._used(file)
        if held is None:
            with self._lock:
                opening = self._opening.setdefault(file, threading.Lock())
            with opening:
                held = self._used(file) or self._begun(file)
        return held

    def _used(self, file: SourceFile) -> _Held | None:
        with self._lock:
            held = self._held.get(file)
            if held is not None:
                self._held.move_to_end(file)
                held.users += 1
            return held

    def _begun(self, file: SourceFile) -> _Held:
        """The descriptor of a file that was not open, or was closed meanwhile."""
        with self._lock:
            while len(self._held) + self._being_opened >= self._limit and self._close_one():
                pass
            self._being_opened += 1
        try:
            return self._compared(file)
        finally:
            with self._lock:
                self._being_opened -= 1

    def _compared(self, file: SourceFile) -> _Held:
        """The descriptor of a file that is opened, and is as it was."""
        descriptor = self._descriptor(file.path)
        try:
            found = look_again(file, descriptor)
            if what := changes(self._known(file), found):
                raise SourceChangedError([_sentence(file, what), *self._others(file)])
        except BaseException:
            _close(descriptor)
            raise
        held = _Held(descriptor, users=1)
        with self._lock:
            self._first.setdefault(file.path, found)
            self._read[file] = None
            self._held[file] = held
        return held

    def _others(self, file: SourceFile) -> list[str]:
        """All other files of the job that have changed, too, in words; looked for once, whichever thread asks first."""
        with self._comparing:
            if self._changed is None:
                everything = dict.fromkeys((*self._looked_at(), *self._read))
                self._changed = {each: found for each in everything if (found := self._change(each)) is not None}
        return [found for each, found in self._changed.items() if each != file]

    def _known(self, file: SourceFile) -> SourceFile:
        """What a file must be: as the plan knows it, and as this process found it first."""
        first = self._first.get(file.path)
        if first is None:
            return file
        return replace(file, mtime_ns=first.mtime_ns if file.mtime_ns is None else file.mtime_ns, inode=first.inode)

    def _change(self, file: SourceFile) -> str | None:
        """What has changed of a file, in words."""
        try:
            descriptor = self._descriptor(file.path)
            try:
                what = changes(self._known(file), look_again(file, descriptor))
            finally:
                _close(descriptor)
        except OSError as error:
            return system_problem(
                f"{printable(file.path)}: was there when the job first read it, and cannot be read now", error
            )
        return _sentence(file, what) if what else None

    def _descriptor(self, path: str) -> int:
        while True:
            try:
                return open_descriptor(path)
            except OSError as error:
                with self._lock:
                    if error.errno not in _TOO_MANY or not self._close_one():
                        raise

    def _close_one(self) -> bool:
        """Close the file that was used longest ago, if there is one that nobody reads; whether there was."""
        for file, held in self._held.items():
            if not held.users:
                _close(self._held.pop(file).descriptor)
                return True
        return False


@dataclass(frozen=True, slots=True)
class ByPath:
    """Files of a source for whoever knows their paths alone."""

    sources: SourceFiles
    files: Mapping[str, SourceFile]

    def opened(self, path: str) -> AbstractContextManager[int]:
        """As `SourceFiles.opened`."""
        return self.sources.opened(self.files[path])


def _close(descriptor: int) -> None:
    """Close a file that was only read: no error of that can lose anything."""
    with suppress(OSError):
        os.close(descriptor)


def _half_of_the_descriptors() -> int:
    """The others are for what is written, and for whoever else works in this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if limit == resource.RLIM_INFINITY else max(limit // 2, 1)


def _sentence(file: SourceFile, what: Iterable[str]) -> str:
    return f"{printable(file.path)}: {'; '.join(what)}: it is being changed; start again when nothing writes to it"


def _raise_if(changes: Iterable[str | None]) -> None:
    problems = [each for each in changes if each is not None]
    if problems:
        raise SourceChangedError(problems)
