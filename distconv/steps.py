"""Lowering: from the boxes of virtual tensors to reads, moves and writes of bytes.

Owns how a shard is produced with few, large, sequential requests and bounded memory:

- a box that is one run of bytes on both sides, and long, is copied from file to file (`CopyRun`);
- everything else is gathered block by block (`Gather`): extents are read, boxes moved from the read buffer to the write
  buffer, blocks written. Extents that overlap or nearly touch are read as one, so column slices of a row-major matrix
  are read as whole row blocks (data sieving), and shards produced together share what they read.

Pure: byte offsets are relative to the start of an operand or of a shard, so the steps of a recipe are the same for all
layers, and `action=plan` counts the bytes of the very steps that will run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from math import prod

from distconv.dtypes import ITEM_SIZE
from distconv.virtual import Copy, Index, VirtualTensor, narrow

# A run at least this long is copied in the kernel; a shorter one is cheaper to gather with its neighbours.
MIN_RUN_BYTES = 64 * 1024
# Unwanted bytes up to this many between two wanted extents are read rather than skipped: on the network file systems
# that hold large checkpoints a request costs as much as reading some tens of KiB.
MAX_GAP_BYTES = 64 * 1024

# A transposition reads every row of the source again for each block of the target, so the fewer blocks the better: it
# reads into this part of a buffer, and has the rest of both for writing. (Blocks with fewer columns instead of fewer
# rows would be read once, but written in thousands of runs shorter than a page, which network file systems punish.)
_TURNING = 8


@dataclass(frozen=True, slots=True)
class CopyRun:
    """Copy `nbytes` from an operand at `source_offset` into shard number `shard` at `target_offset`."""

    operand: int
    source_offset: int
    shard: int
    target_offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Move:
    """A box between the buffers: offsets and strides in bytes, lengths in elements, dims from outer to inner."""

    source_offset: int
    target_offset: int
    shape: Index
    source_strides: Index
    target_strides: Index


@dataclass(frozen=True, slots=True)
class Read:
    """Read `nbytes` of an operand from `offset` into the read buffer, then do the moves."""

    operand: int
    offset: int
    nbytes: int
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """Write `nbytes` of the write buffer from `buffer_offset` into shard number `shard` at `offset`."""

    shard: int
    offset: int
    nbytes: int
    buffer_offset: int


@dataclass(frozen=True, slots=True)
class Gather:
    """Reads with their moves, then writes. `item_size` in bytes; `zero`: parts of the write buffer get no source."""

    item_size: int
    reads: tuple[Read, ...]
    writes: tuple[Write, ...]
    zero: bool


Step = CopyRun | Gather


def lower(shards: Sequence[VirtualTensor], source_shapes: Sequence[Index], buffer_bytes: int) -> Iterator[Step]:
    """The steps that produce shards of one recipe, each in memory of twice `buffer_bytes` for reading and writing."""
    gathered: list[int] = []
    for number, shard in enumerate(shards):
        runs = _runs(number, shard, source_shapes)
        if runs is None:
            gathered.append(number)
        else:
            yield from runs
    if not gathered:
        return
    item_size = ITEM_SIZE[shards[0].dtype]
    reading = buffer_bytes
    if any(_turns(copy) for number in gathered for copy in shards[number].copies):
        reading = max(buffer_bytes // _TURNING, item_size)
    room = max((2 * buffer_bytes - reading) // len(gathered), item_size)
    blocks = [
        [(number, *block) for block in contiguous_blocks(shards[number].shape, room // item_size)]
        for number in gathered
    ]
    for together in zip_longest(*blocks):
        yield _gather([block for block in together if block is not None], shards, source_shapes, reading)


def _turns(copy: Copy) -> bool:
    """Whether dims that the copy runs along change places."""
    dims = [dim for dim, length in zip(copy.dims, copy.shape, strict=True) if dim is not None and length > 1]
    return dims != sorted(dims)


def bytes_read(steps: Sequence[Step]) -> int:
    """Bytes that the steps read from the source."""
    return sum(step.nbytes if isinstance(step, CopyRun) else sum(read.nbytes for read in step.reads) for step in steps)


def contiguous_blocks(shape: Index, elements: int) -> Iterator[tuple[Index, Index]]:
    """Boxes (start, lengths) that tile a row-major shape in order, each contiguous and of at most so many elements."""
    if not prod(shape):
        return
    dim, inner = len(shape), 1
    while dim > 0 and inner * shape[dim - 1] <= elements:
        dim -= 1
        inner *= shape[dim]
    if dim == 0:
        yield (0,) * len(shape), shape
        return
    cut = dim - 1
    length = max(elements // inner, 1)
    for outer in product(*(range(size) for size in shape[:cut])):
        for start in range(0, shape[cut], length):
            starts = (*outer, start) + (0,) * (len(shape) - dim)
            yield starts, (1,) * cut + (min(length, shape[cut] - start),) + shape[dim:]


def _runs(number: int, shard: VirtualTensor, source_shapes: Sequence[Index]) -> list[CopyRun] | None:
    """The shard as runs from file to file, if all of it is long runs."""
    item_size = ITEM_SIZE[shard.dtype]
    runs: list[CopyRun] = []
    for copy in sorted(shard.copies, key=lambda each: each.target_start):
        nest = _nest(copy, source_shapes[copy.operand], shard.shape, item_size)
        if len(nest.shape) > 1 or nest.run < prod(copy.shape) * item_size:
            return None
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.operand == copy.operand
            and last.source_offset + last.nbytes == nest.source_offset
            and last.target_offset + last.nbytes == nest.target_offset
        ):
            runs[-1] = CopyRun(last.operand, last.source_offset, number, last.target_offset, last.nbytes + nest.run)
        else:
            runs.append(CopyRun(copy.operand, nest.source_offset, number, nest.target_offset, nest.run))
    # What has no source is written, and compared, as zeros.
    complete = sum(run.nbytes for run in runs) == shard.elements * item_size
    return runs if complete and all(run.nbytes >= MIN_RUN_BYTES for run in runs) else None


@dataclass(frozen=True, slots=True)
class _Nest:
    """A box as nested loops in source order, adjacent dims merged; offsets, strides and innermost `run` in bytes."""

    source_offset: int
    target_offset: int
    shape: Index
    source_strides: Index
    target_strides: Index
    run: int


def _nest(copy: Copy, source_shape: Index, target_shape: Index, item_size: int) -> _Nest:
    source, target = _strides(source_shape, item_size), _strides(target_shape, item_size)
    loops = sorted(
        (
            (source[source_dim], target[dim], length)
            for dim, (source_dim, length) in enumerate(zip(copy.dims, copy.shape, strict=True))
            if source_dim is not None and length > 1
        ),
        reverse=True,
    )
    merged: list[tuple[int, int, int]] = []
    for source_stride, target_stride, length in loops:
        if merged:
            outer_source, outer_target, outer_length = merged[-1]
            if outer_source == length * source_stride and outer_target == length * target_stride:
                merged[-1] = (source_stride, target_stride, outer_length * length)
                continue
        merged.append((source_stride, target_stride, length))
    if not merged or merged[-1][:2] != (item_size, item_size):
        merged.append((item_size, item_size, 1))
    return _Nest(
        sum(start * stride for start, stride in zip(copy.source_start, source, strict=True)),
        sum(start * stride for start, stride in zip(copy.target_start, target, strict=True)),
        tuple(length for _, _, length in merged),
        tuple(stride for stride, _, _ in merged),
        tuple(stride for _, stride, _ in merged),
        merged[-1][2] * item_size,
    )


def _strides(shape: Index, item_size: int) -> list[int]:
    strides = [item_size] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return strides


def _gather(
    blocks: Sequence[tuple[int, Index, Index]],
    shards: Sequence[VirtualTensor],
    source_shapes: Sequence[Index],
    buffer_bytes: int,
) -> Gather:
    """One step that fills a block of each of several shards."""
    reads: list[Read] = []
    writes = []
    buffer_offset = 0
    sourced = 0
    item_size = ITEM_SIZE[shards[0].dtype]
    for number, starts, lengths in blocks:
        shard = shards[number]
        block = shard
        for dim, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            if length < shard.shape[dim]:
                block = narrow(block, dim, start, length)
        for copy in block.copies:
            sourced += prod(copy.shape) * item_size
            nest = _nest(copy, source_shapes[copy.operand], block.shape, item_size)
            reads += _extents(copy.operand, nest, buffer_offset, buffer_bytes)
        offset = sum(start * stride for start, stride in zip(starts, _strides(shard.shape, item_size), strict=True))
        nbytes = block.elements * item_size
        writes.append(Write(number, offset, nbytes, buffer_offset))
        buffer_offset += nbytes
    return Gather(item_size, tuple(_merged(reads, buffer_bytes)), tuple(writes), sourced < buffer_offset)


def _extents(operand: int, nest: _Nest, buffer_offset: int, buffer_bytes: int) -> Iterator[Read]:
    """The extents of a nest, each with the move of its elements into the write buffer.

    Going outward from the innermost loop, a loop is read in one extent while its gaps are small and it fits.
    """
    lengths, strides = nest.shape, nest.source_strides
    level, span, rows = len(lengths), 0, 1
    while level > 0:
        stride, length = strides[level - 1], lengths[level - 1]
        inner = span or stride
        if stride - inner > MAX_GAP_BYTES:
            break
        level -= 1
        if (length - 1) * stride + inner > buffer_bytes:
            rows = max(buffer_bytes // stride, 1)
            break
        span, rows = (length - 1) * stride + inner, length
    # The loop at `level` is read `rows` at a time; those outside it are walked.
    cut, stride = lengths[level], strides[level]
    inner = sum((length - 1) * each for length, each in zip(lengths[level + 1 :], strides[level + 1 :], strict=True))
    for outer in product(*(range(length) for length in lengths[:level])):
        base_source = nest.source_offset + sum(i * s for i, s in zip(outer, strides, strict=False))
        base_target = nest.target_offset + sum(i * s for i, s in zip(outer, nest.target_strides, strict=False))
        for start in range(0, cut, rows):
            count = min(rows, cut - start)
            shape = (count, *lengths[level + 1 :])
            move = Move(
                0,
                buffer_offset + base_target + start * nest.target_strides[level],
                shape,
                strides[level:],
                nest.target_strides[level:],
            )
            nbytes = (count - 1) * stride + inner + strides[-1]
            yield Read(operand, base_source + start * stride, nbytes, (move,))


def _merged(reads: list[Read], buffer_bytes: int) -> Iterator[Read]:
    """Reads that overlap or nearly touch, as one where the read buffer holds it."""
    pending: Read | None = None
    for read in sorted(reads, key=lambda each: (each.operand, each.offset)):
        if pending is not None and pending.operand == read.operand:
            end = max(pending.offset + pending.nbytes, read.offset + read.nbytes)
            gap = read.offset - (pending.offset + pending.nbytes)
            if gap <= MAX_GAP_BYTES and end - pending.offset <= buffer_bytes:
                skipped = read.offset - pending.offset
                moves = tuple(
                    Move(
                        move.source_offset + skipped,
                        move.target_offset,
                        move.shape,
                        move.source_strides,
                        move.target_strides,
                    )
                    for move in read.moves
                )
                pending = Read(pending.operand, pending.offset, end - pending.offset, pending.moves + moves)
                continue
        if pending is not None:
            yield pending
        pending = read
    if pending is not None:
        yield pending
