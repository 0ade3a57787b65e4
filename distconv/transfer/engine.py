"""The engine: runs steps on open files, on several threads. The only module that moves tensor data.

Owns the threads and their buffers: per thread one allocation, the write buffer in front of the read buffer. Never
writes finished bytes itself; a sink does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from distconv.errors import JobError, LostError, StoppedError, system_problem
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Assembled, LowRank, StoredTensor, position
from distconv.tensors.values import as_bytes, numbers, scaled_product
from distconv.tensors.virtual import VirtualTensor, narrow
from distconv.transfer.files import read_into
from distconv.transfer.lower import lower
from distconv.transfer.sinks import Counters, MemorySink, Sink
from distconv.transfer.sources import SourceFiles
from distconv.transfer.steps import CopyRun, Gather, Move

_ALARM_SECONDS = 0.5
# How long a thread may take to stop, where nobody waits for it for ever.
_FAREWELL_SECONDS = 5
# The largest in-kernel copy in bytes; progress is counted and stops are noticed between two.
_RUN_PIECE = 32 * 1024 * 1024
# Rows of a transposition at a time; three times as fast as all at once (measured with 2-byte elements).
_STRIP = 32
# Elements of a sum that are made at a time, in multiples of so many rows: whatever the size of the buffers, since the
# order of additions, and with it the last bit, must not depend on an option.
_SUM_ELEMENTS, _SUM_ROWS = 2**20, 16


@dataclass(frozen=True, slots=True)
class Shard:
    """A tensor to produce: its table, the path of its file, and the offset of its data in bytes."""

    tensor: VirtualTensor
    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Work:
    """Shards of one parameter that are produced together, and the stored tensors that are their operands.

    With `low_rank` there is a single shard of two dims, to which that product is added.
    """

    sources: tuple[StoredTensor, ...]
    shards: tuple[Shard, ...]
    low_rank: LowRank | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes of the shards."""
        return sum(shard.tensor.nbytes for shard in self.shards)


def run(
    work: Sequence[Work],
    sink: Sink,
    sources: SourceFiles,
    counters: Counters,
    *,
    threads: int,
    buffer_bytes: int,
    must_stop: Callable[[], bool],
) -> None:
    """Produce all the shards, on several threads; `must_stop` is called about twice a second.

    Raises:
        JobError: a read or a write failed; the message names the file.
        StoppedError: `must_stop` returned true.
        LostError: `must_stop` raised it. Threads that hang are left alone then: they may never return.
    """
    counters.progress.leave()
    stop = threading.Event()
    queue = iter(sorted(work, key=lambda each: position(each.sources)))
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
        finally:
            counters.progress.leave()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="transfer")
    patient = True
    workers = [pool.submit(worker) for _ in range(threads)]
    try:
        while wait(workers, timeout=_ALARM_SECONDS, return_when=FIRST_EXCEPTION).not_done:
            if stop.is_set() or must_stop():
                break
    except LostError:
        patient = False
        raise
    finally:
        # Also when this thread is interrupted: the pool is left only when its workers have stopped.
        if not all(future.done() for future in workers):
            stop.set()
        wait(workers, timeout=None if patient else _FAREWELL_SECONDS)
        pool.shutdown(wait=patient)
    failures = [error for future in workers if (error := future.exception()) is not None]
    for error in sorted(failures, key=lambda each: isinstance(each, StoppedError)):
        raise error
    if stop.is_set():
        raise StoppedError("stopped because another process failed")


class _Engine:
    """One thread's buffers and the execution of steps."""

    def __init__(
        self, sink: Sink, sources: SourceFiles, counters: Counters, buffer_bytes: int, stop: threading.Event
    ) -> None:
        self._sink = sink
        self._sources = sources
        self._counters = counters
        self._stop = stop
        self._buffer_bytes = buffer_bytes
        # Of numpy, which asks for huge pages: a transposition touches thousands of rows at a time.
        try:
            self._memory = np.empty(2 * buffer_bytes, np.uint8).data
        except MemoryError:
            raise JobError(f"no memory for buffers of 2 x {buffer_bytes:,} bytes; lower io.buffer_mib") from None

    def produce(self, work: Work) -> None:
        if work.low_rank is not None:
            self._produce_sum(work, work.low_rank)
            return
        shapes = [source.shape for source in work.sources]
        for step in lower([shard.tensor for shard in work.shards], shapes, self._buffer_bytes):
            if self._stop.is_set():
                raise StoppedError("stopped because another thread or process failed")
            if isinstance(step, CopyRun):
                self._copy(step, work)
            else:
                self._gather(step, work)

    def _produce_sum(self, work: Work, low_rank: LowRank) -> None:
        """Produce the sum of a tensor and a low-rank product in blocks of rows."""
        (shard,) = work.shards
        dtype, (rows, columns) = shard.tensor.dtype, shard.tensor.shape
        b, a = (
            numbers(self._collected(each), each.tensor.dtype, each.tensor.shape) for each in (low_rank.b, low_rank.a)
        )
        count = max(_SUM_ELEMENTS // columns // _SUM_ROWS, 1) * _SUM_ROWS
        for start in range(0, rows, count):
            block = narrow(shard.tensor, 0, start, min(count, rows - start))
            data = self._collected(Assembled(work.sources, block))
            product = scaled_product(b[start : start + count], a, low_rank.scaling)
            with np.errstate(over="ignore", invalid="ignore"):
                total = numbers(data, dtype, block.shape) + product
            try:
                self._sink.put(shard.path, shard.offset + start * columns * ITEM_SIZE[dtype], as_bytes(total, dtype))
            except OSError as error:
                raise _failure(f"writing {shard.path}", error) from error

    def _collected(self, wanted: Assembled) -> bytearray:
        """The bytes of an assembled tensor."""
        data = bytearray(wanted.nbytes)
        sink, self._sink = self._sink, MemorySink(data, self._counters)
        try:
            self.produce(Work(wanted.sources, (Shard(wanted.tensor, "", 0),)))
        finally:
            self._sink = sink
        return data

    def _copy(self, step: CopyRun, work: Work) -> None:
        stored, shard = work.sources[step.operand], work.shards[step.shard]
        self._counters.progress.reach(stored.file.path, shard.path)
        try:
            with self._sources.opened(stored.file) as source:
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
                        self._memory,
                    )
        except OSError as error:
            raise _failure(f"copying {stored.name} from {stored.file.path} to {shard.path}", error) from error

    def _gather(self, step: Gather, work: Work) -> None:
        nbytes = sum(write.nbytes for write in step.writes)
        writing, reading = self._memory[:nbytes], self._memory[nbytes:]
        if step.zero:
            writing[:] = bytes(nbytes)
        for read in step.reads:
            stored = work.sources[read.operand]
            self._counters.progress.reach(stored.file.path)
            try:
                with self._sources.opened(stored.file) as source:
                    read_into(source, stored.offset + read.offset, reading[: read.nbytes])
            except OSError as error:
                raise _failure(f"reading {stored.name} from {stored.file.path}", error) from error
            self._counters.add(read=read.nbytes)
            for move in read.moves:
                _move(move, step.item_size, reading, writing)
        for write in step.writes:
            shard = work.shards[write.shard]
            self._counters.progress.reach(shard.path)
            data = writing[write.buffer_offset : write.buffer_offset + write.nbytes]
            try:
                self._sink.put(shard.path, shard.offset + write.offset, data)
            except OSError as error:
                raise _failure(f"writing {shard.path}", error) from error


def _move(move: Move, item_size: int, reading: memoryview, writing: memoryview) -> None:
    dtype = np.dtype(f"u{item_size}")
    source = np.ndarray(move.shape, dtype, reading, move.source_offset, move.source_strides)
    target = np.ndarray(move.shape, dtype, writing, move.target_offset, move.target_strides)
    # A dim of one element is contiguous along none.
    dims = [dim for dim, length in enumerate(move.shape) if length > 1]
    dim = next((dim for dim in dims if move.target_strides[dim] == item_size), None)
    if dim is None or dim == dims[-1]:
        target[...] = source
        return
    # A transposition goes in strips, so that begun cache lines of the target are finished.
    for start in range(0, move.shape[dim], _STRIP):
        strip = (slice(None),) * dim + (slice(start, start + _STRIP),)
        target[strip] = source[strip]


def _failure(doing: str, error: OSError) -> JobError:
    return JobError(system_problem(doing, error))
