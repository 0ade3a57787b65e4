"""What virtual tensors and steps mean: interpreters in plain numpy that check every bound on the way.

Nothing here shares code with distconv's own executor, so agreement is evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.virtual import Copy, VirtualTensor
from distconv.transfer.steps import CopyRun, Gather, Step

# What buffers hold before a step: never zero, so that a byte nobody moved is seen.
_READ_POISON = b"\xee"
_WRITE_POISON = b"\xdd"


def box(start: Sequence[int], shape: Sequence[int], within: Sequence[int]) -> tuple[slice, ...]:
    """The index of a box, which must lie inside the shape."""
    assert len(start) == len(shape) == len(within)
    for low, length, size in zip(start, shape, within, strict=True):
        assert low >= 0
        assert length >= 0
        assert low + length <= size, f"box at {start} of shape {shape} leaves {within}"
    return tuple(slice(low, low + length) for low, length in zip(start, shape, strict=True))


def evaluate(tensor: VirtualTensor, operands: Sequence[np.ndarray], dtype: np.dtype | None = None) -> np.ndarray:
    """The array that a virtual tensor stands for; a box without a source is zeros."""
    result = np.zeros(tensor.shape, dtype or (operands[0].dtype if operands else np.int64))
    for copy in tensor.copies:
        result[box(copy.target_start, copy.shape, tensor.shape)] = _picked(copy, operands[copy.operand])
    return result


def _picked(copy: Copy, operand: np.ndarray) -> np.ndarray:
    """The source box of a copy with its dims in the order of the target."""
    found = operand[box(copy.source_start, copy.source_shape, operand.shape)]
    running = [dim for dim in copy.dims if dim is not None]
    assert len(set(running)) == len(running), f"two target dims run along one of the operand: {copy}"
    standing = [dim for dim in range(operand.ndim) if dim not in running]
    return found.transpose(running + standing).reshape(copy.shape)


@dataclass
class Execution:
    """What executing steps left: the bytes of each shard, which of them were written, and how many were read."""

    shards: list[bytearray]
    written: list[bytearray]
    read: int = 0
    bytes_of_operands: list[bytes] = field(default_factory=list)

    def run(self, step: Step, buffer_bytes: int) -> None:
        if isinstance(step, CopyRun):
            self._put(step.shard, step.target_offset, self._take(step.operand, step.source_offset, step.nbytes))
        else:
            self._gather(step, buffer_bytes)

    def _gather(self, step: Gather, buffer_bytes: int) -> None:
        total = sum(write.nbytes for write in step.writes)
        longest = max((read.nbytes for read in step.reads), default=0)
        assert total + longest <= 2 * buffer_bytes, f"{total} and {longest} bytes do not fit two of {buffer_bytes}"
        writing = bytearray(total) if step.zero else bytearray(_WRITE_POISON * total)
        moved = np.zeros(total, np.uint8)
        for read in step.reads:
            # Exactly as long as the extent, so that numpy refuses a move that leaves it.
            reading = bytearray(_READ_POISON * read.nbytes)
            reading[:] = self._take(read.operand, read.offset, read.nbytes)
            assert read.moves
            for move in read.moves:
                item = np.dtype(f"V{step.item_size}")
                source = np.ndarray(move.shape, item, reading, move.source_offset, move.source_strides)
                np.ndarray(move.shape, item, writing, move.target_offset, move.target_strides)[...] = source
                for byte in range(step.item_size):
                    offset = move.target_offset + byte
                    np.ndarray(move.shape, np.uint8, moved.data, offset, move.target_strides)[...] += 1
        assert moved.max(initial=0) <= 1, "a byte of the write buffer was moved twice"
        assert step.zero == (moved.min(initial=1) == 0), "zero says whether bytes of the write buffer have no source"
        covered = np.zeros(total, np.uint8)
        for write in step.writes:
            covered[write.buffer_offset : write.buffer_offset + write.nbytes] += 1
            self._put(write.shard, write.offset, writing[write.buffer_offset : write.buffer_offset + write.nbytes])
        assert (covered == 1).all(), "each byte of the write buffer is written once"

    def _take(self, operand: int, offset: int, nbytes: int) -> bytes:
        stored = self.bytes_of_operands[operand]
        assert nbytes > 0
        assert 0 <= offset <= offset + nbytes <= len(stored), f"bytes {offset}:{offset + nbytes} of {len(stored)}"
        self.read += nbytes
        return stored[offset : offset + nbytes]

    def _put(self, shard: int, offset: int, data: bytes | bytearray) -> None:
        assert len(data) > 0
        assert 0 <= offset <= offset + len(data) <= len(self.shards[shard])
        assert not any(self.written[shard][offset : offset + len(data)]), "a byte of a shard was written twice"
        self.shards[shard][offset : offset + len(data)] = data
        self.written[shard][offset : offset + len(data)] = b"\x01" * len(data)


def execute(
    steps: Sequence[Step], shards: Sequence[VirtualTensor], operands: Sequence[bytes], buffer_bytes: int
) -> Execution:
    """Run steps on memory as they would run on files whose unwritten bytes are zeros."""
    sizes = [shard.elements * ITEM_SIZE[shard.dtype] for shard in shards]
    execution = Execution(
        shards=[bytearray(size) for size in sizes],
        written=[bytearray(size) for size in sizes],
        bytes_of_operands=list(operands),
    )
    for step in steps:
        execution.run(step, buffer_bytes)
    return execution
