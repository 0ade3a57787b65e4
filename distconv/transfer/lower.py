"""Lowering: from virtual tensors to the steps that produce them in bounded memory.

Owns the choice of steps, and the blocks in which a shard is made:

- a shard that is long runs of bytes is copied from file to file (`CopyRun`);
- everything else is gathered block by block (`Gather`), shards of one recipe together.

Pure: the steps of a recipe are the same for all layers, and `action=plan` counts the bytes of the very steps that will
run. The reads and moves of a box are those of `steps`. Sources count as if they were stored in the type that is made of
them, but for the room that they need in a buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import prod

from distconv.runtime.lanes import Lanes
from distconv.tensors.compose import box_of, contiguous_blocks
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.virtual import Copy, Index, VirtualTensor
from distconv.transfer.steps import (
    MAX_GAP_BYTES,
    CopyRun,
    Gather,
    Nest,
    Read,
    Step,
    Write,
    byte_strides,
    extents,
    merged,
    nest,
)

# A run at least this long is copied from file to file; a shorter one is cheaper to gather with its neighbours, since
# file systems take as long for a request as a core for a few hundred KiB.
MIN_RUN_BYTES = 512 * 1024

# A transposition reads every row of the source again for each block of the target, so the fewer blocks the better: it
# reads into this part of a buffer, and has the rest of both for writing. (Blocks with fewer columns instead of fewer
# rows would be read once, but written in thousands of runs shorter than a page, which network file systems punish.)
_TURNING = 8


def lower(
    shards: Sequence[VirtualTensor], source_shapes: Sequence[Index], buffer_bytes: int, types: Sequence[str] = ()
) -> Iterator[Step]:
    """The steps that produce shards of one recipe; the two buffers of a step are twice `buffer_bytes` together.

    `types`: the element types of the sources, where they may be others than that of the shards.
    """
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
    # What is read takes so many times the room of what becomes of it.
    times = max([ITEM_SIZE[each] // item_size for each in types], default=1) or 1
    reading = buffer_bytes
    if any(_turns(copy) for number in gathered for copy in shards[number].copies):
        reading = max(buffer_bytes // _TURNING, times * item_size)
    room = max((2 * buffer_bytes - reading) // len(gathered), item_size)
    reading //= times
    blocks = [
        [(number, *block) for block in contiguous_blocks(shards[number].shape, room // item_size)]
        for number in gathered
    ]
    for together in zip_longest(*blocks):
        yield _gather([block for block in together if block is not None], shards, source_shapes, reading)


def buffer_for(shards: Sequence[VirtualTensor], source_shapes: Sequence[Index], lanes: Lanes) -> int:
    """The size in bytes of each of the two buffers with which shards of one recipe are produced.

    Larger ones are for what is read of many places, or again and again, for each block, unless it is a single block.
    """
    if sum(shard.nbytes for shard in shards) <= lanes.buffer_bytes:
        return lanes.buffer_bytes
    many = any(
        _turns(copy) or _is_scattered(nest(copy, source_shapes[copy.operand], shard.shape, ITEM_SIZE[shard.dtype]))
        for shard in shards
        for copy in shard.copies
    )
    return lanes.large_bytes if many else lanes.buffer_bytes


def _is_scattered(loops: Nest) -> bool:
    """Whether what a nest reads comes in short extents that are too far apart to be one read; so may short nests be."""
    span = 0
    for length, stride in zip(reversed(loops.shape), reversed(loops.source_strides), strict=True):
        inner = span or stride
        if stride - inner > MAX_GAP_BYTES:
            break
        span = (length - 1) * stride + inner
    return span < MIN_RUN_BYTES


def _turns(copy: Copy) -> bool:
    """Whether the copy transposes dims."""
    dims = [dim for dim, length in zip(copy.dims, copy.shape, strict=True) if dim is not None and length > 1]
    return dims != sorted(dims)


def _runs(number: int, shard: VirtualTensor, source_shapes: Sequence[Index]) -> list[CopyRun] | None:
    """The shard as runs from file to file, `None` unless all of them are long."""
    item_size = ITEM_SIZE[shard.dtype]
    runs: list[CopyRun] = []
    for copy in sorted(shard.copies, key=lambda each: each.target_start):
        loops = nest(copy, source_shapes[copy.operand], shard.shape, item_size)
        if loops.run < prod(copy.shape) * item_size:
            return None
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.operand == copy.operand
            and last.source_offset + last.nbytes == loops.source_offset
            and last.target_offset + last.nbytes == loops.target_offset
        ):
            runs[-1] = CopyRun(last.operand, last.source_offset, number, last.target_offset, last.nbytes + loops.run)
        else:
            runs.append(CopyRun(copy.operand, loops.source_offset, number, loops.target_offset, loops.run))
    # Elements without a source are written, and compared, as zeros.
    complete = sum(run.nbytes for run in runs) == shard.nbytes
    return runs if complete and all(run.nbytes >= MIN_RUN_BYTES for run in runs) else None


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
        block = box_of(shard, starts, lengths)
        for copy in block.copies:
            sourced += prod(copy.shape) * item_size
            loops = nest(copy, source_shapes[copy.operand], block.shape, item_size)
            reads += extents(copy.operand, loops, buffer_offset, buffer_bytes)
        offset = sum(start * stride for start, stride in zip(starts, byte_strides(shard.shape, item_size), strict=True))
        writes.append(Write(number, offset, block.nbytes, buffer_offset))
        buffer_offset += block.nbytes
    return Gather(item_size, tuple(merged(reads, buffer_bytes)), tuple(writes), sourced < buffer_offset)
