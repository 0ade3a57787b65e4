"""Sinks, the receivers of finished bytes: writing, comparing with existing files, keeping in memory.

Owns the count of bytes really moved. Knows files and offsets, never tensors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from zlib import crc32

from distconv.runtime.progress import Progress
from distconv.transfer.checksum import Checksums
from distconv.transfer.files import OpenFiles, copy_in_kernel, read_into, write_from
from distconv.transfer.pieces import Pieces, idle_seconds

# The size in bytes of the third buffer, through which blocks are compared.
_PIECE = 1024 * 1024


class Sink(Protocol):
    """A receiver of finished bytes."""

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:
        """Receive `nbytes` at `source_offset` of the open file `source`, for `offset` of the file at `path`."""

    def put(self, path: str, offset: int, data: memoryview) -> None:
        """Receive bytes for `offset` of the file at `path`."""


class Readable(Protocol):
    """Files to compare with."""

    def opened(self, path: str) -> AbstractContextManager[int]:
        """The descriptor of a file, which stays open inside the context."""


class Counters:
    """The bytes really read and written by this process; `on_progress` gets the size of every finished portion.

    `progress` is that which other processes watch: every count is a step. `overflowed`: element type → tensor → the
    number of finite elements that a cast has made infinite. `import_seconds`: the time in which some thread imported.
    """

    def __init__(self, on_progress: Callable[[int], None], progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self.read = 0
        self.written = 0
        self.overflowed: dict[str, dict[str, int]] = {}
        self.import_seconds = 0.0
        self._importers, self._import_began = 0, 0.0
        self._lock = threading.Lock()
        self._on_progress = on_progress

    @contextmanager
    def importing(self) -> Iterator[None]:
        """A context in which a thread may import what others import, too, or wait for that."""
        with self._lock:
            self._importers += 1
            if self._importers == 1:
                self._import_began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._importers -= 1
                if not self._importers:
                    self.import_seconds += time.monotonic() - self._import_began

    @property
    def is_importing(self) -> bool:
        """Whether some thread is importing."""
        return self._importers > 0

    def add(self, read: int = 0, written: int = 0, done: int = 0) -> None:
        """Count bytes."""
        with self._lock:
            self.read += read
            self.written += written
            if done:
                self.progress.move(done)
                self._on_progress(done)
        self.progress.step()

    def add_overflow(self, dtype: str, tensor: str, elements: int) -> None:
        """Count elements of a tensor that are infinite after a cast to `dtype`, and were not before."""
        with self._lock:
            found = self.overflowed.setdefault(dtype, {})
            found[tensor] = found.get(tensor, 0) + elements

    def overflowed_in(self, path: str) -> dict[str, dict[str, int]]:
        """The part of `overflowed` that is in the file of this path, with which the names of its tensors begin."""
        parts = {
            dtype: {tensor: elements for tensor, elements in tensors.items() if tensor.startswith(f"{path}: ")}
            for dtype, tensors in self.overflowed.items()
        }
        return {dtype: part for dtype, part in parts.items() if part}


class WriteSink:
    """Writes finished bytes; with `checksums` it adds theirs, otherwise it copies runs in the kernel where that can.

    `heads`: (path, offset) → bytes that belong in front of what is written there, in the same request.
    """

    def __init__(
        self,
        files: OpenFiles,
        counters: Counters,
        checksums: Checksums | None = None,
        heads: Mapping[tuple[str, int], bytes] | None = None,
    ) -> None:
        self._files = files
        self._counters = counters
        self._checksums = checksums
        self._heads = heads or {}
        self._pieces = Pieces()

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:
        """Copy from file to file."""
        target, head = self._files.get(path), self._head(path, offset)
        done = checksum = 0
        if self._checksums is None:
            done = copy_in_kernel(source, source_offset, target, offset, nbytes)
            if done:
                write_from(target, offset - len(head), head)
                head = head[:0]
        while done < nbytes:
            piece = scratch[: min(self._pieces.nbytes, nbytes - done)]
            before = idle_seconds()
            read_into(source, source_offset + done, piece)
            self._pieces.learn(idle_seconds() - before)
            if self._checksums is not None:
                checksum = crc32(piece, checksum)
            write_from(target, offset + done - len(head), head, piece)
            done += len(piece)
            head = head[:0]
        if self._checksums is not None:
            self._checksums.add_summed(path, offset, nbytes, checksum)
        self._counters.add(read=nbytes, written=nbytes, done=nbytes)

    def put(self, path: str, offset: int, data: memoryview) -> None:
        """Write bytes at their offset."""
        target, head = self._files.get(path), self._head(path, offset)
        if self._checksums is not None:
            self._checksums.add(path, offset, data)
        write_from(target, offset - len(head), head, data)
        self._counters.add(written=len(data), done=len(data))

    def _head(self, path: str, offset: int) -> memoryview:
        """The bytes that belong in front of an offset, which the caller writes; they count for the checksum."""
        head = self._heads.get((path, offset), b"")
        if self._checksums is not None:
            self._checksums.add(path, offset - len(head), head)
        return memoryview(head)


class CompareSink:
    """Compares finished bytes with existing files; `different` holds (path, offset) of the portions that differ."""

    def __init__(self, files: Readable, counters: Counters) -> None:
        self._files = files
        self._counters = counters
        self.different: set[tuple[str, int]] = set()

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:
        """Compare a run of the source with a run of the target."""
        half = len(scratch) // 2
        for start in range(0, nbytes, half):
            length = min(half, nbytes - start)
            read_into(source, source_offset + start, scratch[:length])
            self._compare(path, offset + start, scratch[:length], scratch[half : half + length])
            self._counters.add(read=2 * length, done=length)

    def put(self, path: str, offset: int, data: memoryview) -> None:
        """Compare bytes with those at their offset."""
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._compare(path, offset + start, piece, memoryview(bytearray(len(piece))))
        self._counters.add(read=len(data), done=len(data))

    def _compare(self, path: str, offset: int, expected: memoryview, found: memoryview) -> None:
        # Here, since whoever writes does without.
        with self._counters.importing():
            import numpy as np  # noqa: PLC0415

        with self._files.opened(path) as descriptor:
            read_into(descriptor, offset, found)
        if not np.array_equal(np.frombuffer(expected, np.uint8), np.frombuffer(found, np.uint8)):
            self.different.add((path, offset))


class MemorySink:
    """Keeps finished bytes in `data`, by their offsets; paths are ignored."""

    def __init__(self, data: bytearray, counters: Counters) -> None:
        self._data = memoryview(data)
        self._counters = counters

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:  # noqa: ARG002 - of the interface
        """Read bytes of an open file."""
        read_into(source, source_offset, self._data[offset : offset + nbytes])
        self._counters.add(read=nbytes)

    def put(self, path: str, offset: int, data: memoryview) -> None:  # noqa: ARG002
        """Keep bytes."""
        self._data[offset : offset + len(data)] = data
