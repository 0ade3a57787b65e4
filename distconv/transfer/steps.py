"""Steps: the reads, moves and writes of bytes of a transfer, and the reads and moves of a box.

Owns the merging that makes requests few, large and sequential: adjacent dims are one loop (`nest`), a loop with small
gaps is one extent (`extents`), and extents that overlap or nearly touch are one read (`merged`). So column slices of a
row-major matrix are read as whole row blocks (data sieving), and shards produced together share their reads.

Pure: byte offsets are relative to the start of an operand or of a shard, and count operands as if they were stored in
the element type of the shard; `moves` knows better. Never chooses the steps of a shard, which `lower` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from distconv.tensors.virtual import Copy, Index

# Unwanted bytes up to this many between two wanted extents are read rather than skipped: on the network file systems
# that hold large checkpoints a request costs as much as reading some tens of KiB.
MAX_GAP_BYTES = 64 * 1024


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
    """Read `nbytes` of an operand at `offset` into the read buffer, then run the moves."""

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
    """Reads with their moves, then writes; `item_size` in bytes; `zero`: clear the write buffer first."""

    item_size: int
    reads: tuple[Read, ...]
    writes: tuple[Write, ...]
    zero: bool


Step = CopyRun | Gather


def bytes_read(steps: Sequence[Step]) -> int:
    """Bytes that the steps read from the source."""
    return sum(bytes_by_operand(steps).values())


def bytes_by_operand(
    steps: Sequence[Step], stored: Callable[[int, int], int] = lambda _, nbytes: nbytes
) -> Mapping[int, int]:
    """Bytes that the steps read, by the number of the operand.

    `stored` maps the number of an operand, and bytes of elements that are made of it, to the bytes that are read.
    """
    found: Counter[int] = Counter()
    for step in steps:
        for read in [step] if isinstance(step, CopyRun) else step.reads:
            found[read.operand] += stored(read.operand, read.nbytes)
    return found


@dataclass(frozen=True, slots=True)
class Nest:
    """A box as nested loops in source order, with adjacent dims merged; offsets, strides and `run` in bytes.

    `run`: the contiguous bytes of the innermost loop.
    """

    source_offset: int
    target_offset: int
    shape: Index
    source_strides: Index
    target_strides: Index
    run: int


def nest(copy: Copy, source_shape: Index, target_shape: Index, item_size: int) -> Nest:
    """The loops of a copy, given the shapes of its operand and of the tensor; `item_size` in bytes."""
    source, target = byte_strides(source_shape, item_size), byte_strides(target_shape, item_size)
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
    return Nest(
        sum(start * stride for start, stride in zip(copy.source_start, source, strict=True)),
        sum(start * stride for start, stride in zip(copy.target_start, target, strict=True)),
        tuple(length for _, _, length in merged),
        tuple(stride for stride, _, _ in merged),
        tuple(stride for _, stride, _ in merged),
        merged[-1][2] * item_size,
    )


def byte_strides(shape: Index, item_size: int) -> list[int]:
    """The strides in bytes of a row-major shape."""
    strides = [item_size] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return strides


def extents(operand: int, nest: Nest, buffer_offset: int, buffer_bytes: int) -> Iterator[Read]:
    """The extents of a nest as reads, with the moves of their elements into the write buffer.

    Going outward from the innermost loop, a loop is one extent while its gaps are small and it fits the read buffer.
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


def merged(reads: Sequence[Read], buffer_bytes: int) -> Iterator[Read]:
    """Reads of which those that overlap or nearly touch are one, as far as the read buffer holds it."""
    group: list[Read] = []
    end = 0
    for read in sorted(reads, key=lambda each: (each.operand, each.offset)):
        reached = max(end, read.offset + read.nbytes)
        if (
            group
            and group[0].operand == read.operand
            and read.offset - end <= MAX_GAP_BYTES
            and reached - group[0].offset <= buffer_bytes
        ):
            group.append(read)
            end = reached
        else:
            if group:
                yield _joined(group, end)
            group, end = [read], read.offset + read.nbytes
    if group:
        yield _joined(group, end)


def _joined(reads: Sequence[Read], end: int) -> Read:
    """One read from the beginning of the first read up to byte `end` of the operand, with all moves."""
    first = reads[0]
    if len(reads) == 1:
        return first
    moves = (
        Move(
            move.source_offset + read.offset - first.offset,
            move.target_offset,
            move.shape,
            move.source_strides,
            move.target_strides,
        )
        for read in reads
        for move in read.moves
    )
    return Read(first.operand, first.offset, end - first.offset, tuple(moves))
