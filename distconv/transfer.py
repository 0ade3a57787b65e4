"""The only place where bytes move: runs the steps of `steps` on open files.

Owns file descriptors of the source, buffers, threads and the counters of what was really read and written. What is done
with finished bytes is the sink's business: `WriteSink` writes them, `CompareSink` compares them with what is there.
Memory per thread is one read buffer and one write buffer.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from distconv.errors import JobError
from distconv.source import SourceFile, StoredTensor
from distconv.steps import CopyRun, Gather, Move, lower
from distconv.virtual import VirtualTensor

_ALARM_SECONDS = 0.5
# In-kernel copies go in pieces of this many bytes, so that progress and a stop are seen in between.
_RUN_PIECE = 32 * 1024 * 1024
_NO_KERNEL_COPY = {errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY}


@dataclass(frozen=True, slots=True)
class Shard:
    """A tensor to produce: what it is made of, and the file and offset in bytes where its data belongs."""

    tensor: VirtualTensor
    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Work:
    """Shards of one parameter that are produced together, and the stored tensors that they are made from."""

    sources: tuple[StoredTensor, ...]
    shards: tuple[Shard, ...]


class Sink(Protocol):
    """What happens to finished bytes."""

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:
        """`nbytes` of an open file belong at `offset` of the file at `path`."""

    def put(self, path: str, offset: int, data: memoryview) -> None:
        """These bytes belong at `offset` of the file at `path`."""


class StoppedError(JobError):
    """Another process or thread failed, so this one stopped."""


class Counters:
    """Bytes really read and written by this process; `on_progress` is told of each portion done."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self.read = 0
        self.written = 0
        self._lock = threading.Lock()
        self._on_progress = on_progress

    def add(self, read: int = 0, written: int = 0, done: int = 0) -> None:
        """Count bytes."""
        with self._lock:
            self.read += read
            self.written += written
            if done:
                self._on_progress(done)


class OpenFiles:
    """File descriptors by path, opened when first used and closed together; safe to use from several threads."""

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def get(self, path: str, size: int | None = None) -> int:
        """The descriptor of a file, which must have `size` bytes if that is given."""
        with self._lock:
            if path not in self._open:
                descriptor = os.open(path, self._flags | os.O_CLOEXEC)
                self._open[path] = descriptor
                found = os.fstat(descriptor).st_size
                if size is not None and found != size:
                    raise JobError(
                        f"{path}: was {size} bytes long when it was indexed, now {found}: it is being changed"
                    )
            return self._open[path]

    def items(self) -> Iterator[tuple[str, int]]:
        """Path and descriptor of each open file."""
        yield from self._open.items()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def open_source(files: OpenFiles, file: SourceFile) -> int:
    """The descriptor of a source file that has not changed since it was indexed."""
    return files.get(file.path, file.size)


class WriteSink:
    """Writes finished bytes; copies runs in the kernel where the file systems can."""

    def __init__(self, files: OpenFiles, counters: Counters) -> None:
        self._files = files
        self._counters = counters
        self._in_kernel = hasattr(os, "copy_file_range")

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:
        """Copy from file to file."""
        target = self._files.get(path)
        done = 0
        while self._in_kernel and done < nbytes:
            try:
                copied = os.copy_file_range(source, target, nbytes - done, source_offset + done, offset + done)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                self._in_kernel = False
                break
            if copied == 0:
                break
            done += copied
        while done < nbytes:
            piece = scratch[: min(len(scratch), nbytes - done)]
            read_into(source, source_offset + done, piece)
            write_from(target, offset + done, piece)
            done += len(piece)
        self._counters.add(read=nbytes, written=nbytes, done=nbytes)

    def put(self, path: str, offset: int, data: memoryview) -> None:
        """Write bytes at their place."""
        write_from(self._files.get(path), offset, data)
        self._counters.add(written=len(data), done=len(data))


class CompareSink:
    """Compares finished bytes with those in place; `different` gets path and offset of each portion that differs."""

    def __init__(self, files: OpenFiles, counters: Counters) -> None:
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
        """Compare bytes with those at their place."""
        self._compare(path, offset, data, memoryview(bytearray(len(data))))
        self._counters.add(read=len(data), done=len(data))

    def _compare(self, path: str, offset: int, expected: memoryview, found: memoryview) -> None:
        read_into(self._files.get(path), offset, found)
        if not np.array_equal(np.frombuffer(expected, np.uint8), np.frombuffer(found, np.uint8)):
            self.different.add((path, offset))


def run(
    work: Sequence[Work],
    sink: Sink,
    sources: OpenFiles,
    counters: Counters,
    *,
    threads: int,
    buffer_bytes: int,
    must_stop: Callable[[], bool],
) -> None:
    """Produce all the shards, on several threads; `must_stop` is asked about twice a second.

    Raises:
        JobError: a read or a write failed; the message names the file.
        StoppedError: `must_stop` said so.
    """
    stop = threading.Event()
    queue = iter(sorted(work, key=_source_position))
    lock = threading.Lock()

    def worker() -> None:
        engine = _Engine(sink, sources, counters, buffer_bytes, stop)
        try:
            while True:
                with lock:
                    item = next(queue, None)
                if item is None or stop.is_set():
                    return
                engine.produce(item)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix="transfer") as pool:
        workers = [pool.submit(worker) for _ in range(threads)]
        try:
            while wait(workers, timeout=_ALARM_SECONDS, return_when=FIRST_EXCEPTION).not_done:
                if stop.is_set() or must_stop():
                    break
        finally:
            # Also when this thread is interrupted: the pool is left only when its workers have stopped.
            if not all(future.done() for future in workers):
                stop.set()
    failures = [error for future in workers if (error := future.exception()) is not None]
    for error in sorted(failures, key=lambda each: isinstance(each, StoppedError)):
        raise error
    if stop.is_set():
        raise StoppedError("stopped because another process failed")


def _source_position(work: Work) -> tuple[str, int]:
    if not work.sources:
        return "", 0
    return work.sources[0].file.path, work.sources[0].offset


class _Engine:
    """One thread's buffers and the execution of steps."""

    def __init__(
        self, sink: Sink, sources: OpenFiles, counters: Counters, buffer_bytes: int, stop: threading.Event
    ) -> None:
        self._sink = sink
        self._sources = sources
        self._counters = counters
        self._stop = stop
        self._buffer_bytes = buffer_bytes
        self._reading = memoryview(bytearray(buffer_bytes))
        self._writing = memoryview(bytearray(buffer_bytes))

    def produce(self, work: Work) -> None:
        shapes = [source.shape for source in work.sources]
        for step in lower([shard.tensor for shard in work.shards], shapes, self._buffer_bytes):
            if self._stop.is_set():
                raise StoppedError("stopped because another thread or process failed")
            if isinstance(step, CopyRun):
                self._copy(step, work)
            else:
                self._gather(step, work)

    def _copy(self, step: CopyRun, work: Work) -> None:
        stored, shard = work.sources[step.operand], work.shards[step.shard]
        try:
            source = open_source(self._sources, stored.file)
            for start in range(0, step.nbytes, _RUN_PIECE):
                if self._stop.is_set():
                    raise StoppedError("stopped because another thread or process failed")
                length = min(_RUN_PIECE, step.nbytes - start)
                self._sink.copy(
                    source,
                    stored.offset + step.source_offset + start,
                    shard.path,
                    shard.offset + step.target_offset + start,
                    length,
                    self._reading,
                )
        except OSError as error:
            raise _failure(f"copying {stored.name} from {stored.file.path} to {shard.path}", error) from error

    def _gather(self, step: Gather, work: Work) -> None:
        nbytes = sum(write.nbytes for write in step.writes)
        if step.zero:
            self._writing[:nbytes] = bytes(nbytes)
        for read in step.reads:
            stored = work.sources[read.operand]
            try:
                source = open_source(self._sources, stored.file)
                read_into(source, stored.offset + read.offset, self._reading[: read.nbytes])
            except OSError as error:
                raise _failure(f"reading {stored.name} from {stored.file.path}", error) from error
            self._counters.add(read=read.nbytes)
            for move in read.moves:
                _move(move, step.item_size, self._reading, self._writing)
        for write in step.writes:
            shard = work.shards[write.shard]
            data = self._writing[write.buffer_offset : write.buffer_offset + write.nbytes]
            try:
                self._sink.put(shard.path, shard.offset + write.offset, data)
            except OSError as error:
                raise _failure(f"writing {shard.path}", error) from error


def _move(move: Move, item_size: int, reading: memoryview, writing: memoryview) -> None:
    dtype = np.dtype(f"u{item_size}")
    target = np.ndarray(move.shape, dtype, writing, move.target_offset, move.target_strides)
    target[...] = np.ndarray(move.shape, dtype, reading, move.source_offset, move.source_strides)


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


def write_from(descriptor: int, offset: int, buffer: memoryview) -> None:
    """Write all of the buffer to a file."""
    done = 0
    while done < len(buffer):
        done += os.pwritev(descriptor, [buffer[done:]], offset + done)


def _failure(doing: str, error: OSError) -> JobError:
    return JobError(f"{doing}: {error.strerror or error}")


def synchronise(files: Iterable[tuple[str, int]]) -> None:
    """Make the contents of open files, and the directories that name them, durable."""
    for path, descriptor in files:
        os.fsync(descriptor)
        synchronise_directory(os.path.dirname(path))


def synchronise_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
