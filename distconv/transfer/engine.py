"""The engine: runs steps on open files. The only module that moves tensor data.

Owns how work is divided into tasks, and how the memory of a task is used: the write buffer is in front of the read
buffer. Knows one thread; `crew` has several. Never writes finished bytes itself; a sink does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING

from distconv.errors import StoppedError
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Assembled, LowRank, StoredTensor
from distconv.tensors.virtual import VirtualTensor, narrow
from distconv.transfer.buffers import ALIGNMENT, Buffers
from distconv.transfer.lower import buffer_for, lower
from distconv.transfer.reading import Reader, failure
from distconv.transfer.sinks import Counters, MemorySink, Sink
from distconv.transfer.sources import SourceFiles
from distconv.transfer.steps import CopyRun, Gather, Step

if TYPE_CHECKING:
    from distconv.transfer.moves import Moving

# The largest run in bytes that a thread copies; progress is counted and stops are noticed between two.
_RUN_PIECE = 8 * 1024 * 1024
# Bytes that are read at a time to be cast: they are still in the cache then.
_CAST_PIECE = 1024 * 1024
# Elements of a sum that are made at a time, in multiples of so many rows: whatever the size of the buffers, since the
# order of additions, and with it the last bit, must not depend on an option.
_SUM_ELEMENTS, _SUM_ROWS = 2**20, 16


@dataclass(frozen=True, slots=True)
class Shard:
    """A tensor to produce: its table, the path of its file, the offset of its data in bytes, its name in messages."""

    tensor: VirtualTensor
    path: str
    offset: int
    title: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """Shards of one parameter that are produced together, and the stored tensors that are their operands.

    The shards are of one element type, to which the elements of operands of another type are cast. With `low_rank`
    there is a single shard of two dims, to which that product is added.
    """

    sources: tuple[StoredTensor, ...]
    shards: tuple[Shard, ...]
    low_rank: LowRank | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes of the shards."""
        return sum(shard.tensor.nbytes for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Task:
    """A step of a piece of work, and the size in bytes of the memory with which it is done.

    Without a step it is all of the work: the sum with a low-rank product, of which each block needs all of the factors.
    """

    work: Work
    step: Step | None
    memory_bytes: int


def tasks_of(work: Work, buffers: Buffers) -> Iterator[Task]:
    """The tasks of a piece of work, independent of each other.

    They are in the order of what they read, but runs that are copied to several shards come in turn: threads that write
    one file wait for each other.
    """
    if work.low_rank is not None:
        yield Task(work, None, 0)
        return
    shapes, types = [source.shape for source in work.sources], [source.read_as for source in work.sources]
    tensors = [shard.tensor for shard in work.shards]
    buffer_bytes = buffer_for(tensors, shapes, buffers.lanes)
    runs: dict[int, list[CopyRun]] = {}
    gathers: list[Gather] = []
    for step in lower(tensors, shapes, buffer_bytes, types):
        if isinstance(step, CopyRun):
            runs.setdefault(step.shard, []).extend(_parts(step))
        else:
            gathers.append(step)
    for together in zip_longest(*runs.values()):
        yield from (Task(work, run, 2 * buffer_bytes) for run in together if run is not None)
    yield from (Task(work, gather, _gather_bytes(gather, work)) for gather in gathers)


def _gather_bytes(step: Gather, work: Work) -> int:
    """The size in bytes of what is written of a gather and of its longest read, as it is stored."""
    size = ITEM_SIZE[work.shards[0].tensor.dtype]
    reads = (read.nbytes // size * ITEM_SIZE[work.sources[read.operand].read_as] for read in step.reads)
    return _aligned(sum(write.nbytes for write in step.writes)) + max(reads, default=0)


def _aligned(nbytes: int) -> int:
    """The offset in bytes behind so many where elements of any size may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _parts(run: CopyRun) -> Iterator[CopyRun]:
    """A run in parts that take no thread long."""
    for start in range(0, run.nbytes, _RUN_PIECE):
        yield replace(
            run,
            source_offset=run.source_offset + start,
            target_offset=run.target_offset + start,
            nbytes=min(_RUN_PIECE, run.nbytes - start),
        )


class Engine:
    """The execution of tasks by one thread, whose bytes go to `sink`; it ends early once `stop` is set."""

    def __init__(
        self, sink: Sink, sources: SourceFiles, counters: Counters, buffers: Buffers, stop: threading.Event
    ) -> None:
        self.sink = sink
        self._sources = sources
        self._counters = counters
        self._reader = Reader(sources, counters)
        self._stop = stop
        self._buffers = buffers

    @cached_property
    def _moving(self) -> Moving:
        # Here, since a run that is copied as it is needs no numpy, and another thread may be copying meanwhile.
        with self._counters.importing():
            from distconv.transfer.moves import Moving  # noqa: PLC0415

        return Moving()

    def do(self, task: Task) -> None:
        """Produce what a task is for.

        Raises:
            JobError: a read or a write failed; the message names the file.
            StoppedError: another thread or process has failed meanwhile.
        """
        if self._stop.is_set():
            raise StoppedError("stopped because another thread or process failed")
        if task.step is None:
            assert task.work.low_rank is not None
            self._produce_sum(task.work, task.work.low_rank)
            return
        # Who waits for buffers is at no file, and not the one that hangs.
        self._counters.progress.leave()
        with self._buffers.taken(task.memory_bytes) as memory:
            if isinstance(task.step, CopyRun):
                self._copy(task.step, task.work, memory)
            else:
                self._gather(task.step, task.work, memory)

    def _produce_sum(self, work: Work, low_rank: LowRank) -> None:
        """Produce the sum of a tensor and a low-rank product in blocks of rows."""
        # Here, as above.
        with self._counters.importing():
            from distconv.tensors.values import added, as_bytes, numbers, scaled_product  # noqa: PLC0415

        (shard,) = work.shards
        dtype, (rows, columns) = shard.tensor.dtype, shard.tensor.shape
        wide = "float64" if any(source.dtype == "float64" for source in work.sources) else "float32"
        b, a = (
            numbers(self._collected(each), each.tensor.dtype, each.tensor.shape) for each in (low_rank.b, low_rank.a)
        )
        count = max(_SUM_ELEMENTS // columns // _SUM_ROWS, 1) * _SUM_ROWS
        for start in range(0, rows, count):
            block = replace(narrow(shard.tensor, 0, start, min(count, rows - start)), dtype=wide)
            data = self._collected(Assembled(work.sources, block))
            product = scaled_product(b[start : start + count], a, low_rank.scaling)
            rounded, overflow = as_bytes(added(numbers(data, wide, block.shape), product), dtype)
            self._count(shard, overflow)
            self._put(shard, start * columns * ITEM_SIZE[dtype], rounded)

    def _collected(self, wanted: Assembled) -> bytearray:
        """The bytes of an assembled tensor."""
        data = bytearray(wanted.nbytes)
        engine = Engine(MemorySink(data, self._counters), self._sources, self._counters, self._buffers, self._stop)
        for task in tasks_of(Work(wanted.sources, (Shard(wanted.tensor, "", 0),)), self._buffers):
            engine.do(task)
        return data

    def _copy(self, step: CopyRun, work: Work, memory: memoryview) -> None:
        stored, shard = work.sources[step.operand], work.shards[step.shard]
        if stored.dtype != shard.tensor.dtype or stored.quantised is not None:
            self._convert(step, stored, shard, memory)
            return
        self._counters.progress.reach(stored.file.path, shard.path)
        try:
            with self._sources.opened(stored.file) as source:
                self.sink.copy(
                    source,
                    stored.offset + step.source_offset,
                    shard.path,
                    shard.offset + step.target_offset,
                    step.nbytes,
                    memory,
                )
        except OSError as error:
            raise failure(f"copying {stored.name} from {stored.file.path} to {shard.path}", error) from error

    def _convert(self, step: CopyRun, stored: StoredTensor, shard: Shard, memory: memoryview) -> None:
        """Copy a run whose elements are dequantised or cast."""
        dtype, half = shard.tensor.dtype, len(memory) // 2 // 8 * 8
        writing, reading = memory[:half], memory[half : half + _CAST_PIECE]
        piece = len(reading) // ITEM_SIZE[stored.read_as] * ITEM_SIZE[dtype]
        for start in range(0, step.nbytes, half):
            if self._stop.is_set():
                raise StoppedError("stopped because another thread or process failed")
            data = writing[: min(half, step.nbytes - start)]
            for first in range(0, len(data), piece):
                part = data[first : first + piece]
                read = self._reader.read(stored, dtype, step.source_offset + start + first, len(part), reading)
                self._count(shard, self._moving.run(read, stored.read_as, part, dtype))
            self._put(shard, step.target_offset + start, data)

    def _gather(self, step: Gather, work: Work, memory: memoryview) -> None:
        nbytes = sum(write.nbytes for write in step.writes)
        dtype = work.shards[0].tensor.dtype
        writing, reading = memory[:nbytes], memory[_aligned(nbytes) :]
        if step.zero:
            writing[:] = bytes(nbytes)
        for read in step.reads:
            stored = work.sources[read.operand]
            data = self._reader.read(stored, dtype, read.offset, read.nbytes, reading)
            for move in read.moves:
                overflow = self._moving.box(move, data, stored.read_as, writing, dtype)
                if overflow:
                    *_, write = (each for each in step.writes if each.buffer_offset <= move.target_offset)
                    self._count(work.shards[write.shard], overflow)
        for write in step.writes:
            data = writing[write.buffer_offset : write.buffer_offset + write.nbytes]
            self._put(work.shards[write.shard], write.offset, data)

    def _put(self, shard: Shard, offset: int, data: memoryview) -> None:
        self._counters.progress.reach(shard.path)
        try:
            self.sink.put(shard.path, shard.offset + offset, data)
        except OSError as error:
            raise failure(f"writing {shard.path}", error) from error

    def _count(self, shard: Shard, overflow: int) -> None:
        if overflow:
            self._counters.add_overflow(shard.tensor.dtype, shard.title, overflow)
