"""Moving boxes of elements between buffers; those of another element type than what is made of them are cast.

Owns what is computed between reading and writing. Steps count elements of one type, that of what is made, as if they
were stored so: what is read of a source of another type has other offsets and strides, which only this module knows.
Quantised elements have been dequantised before, where they are read.
"""

from __future__ import annotations

import numpy as np

from distconv.tensors.casts import Cast
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.transfer.steps import Move

# Rows of a transposition at a time; three times as fast as all at once (measured with 2-byte elements).
_STRIP = 32


class Moving:
    """The moves of one thread."""

    def __init__(self) -> None:
        self._cast = Cast()

    def run(self, source: memoryview, dtype: str, target: memoryview, into: str) -> int:
        """Cast contiguous elements of type `dtype` to type `into`; how many become infinite by that."""
        if dtype == into:
            target[:] = source
            return 0
        given, made = np.frombuffer(source, f"u{ITEM_SIZE[dtype]}"), np.frombuffer(target, f"u{ITEM_SIZE[into]}")
        return self._cast(given, dtype, made, into)

    def box(self, move: Move, reading: memoryview, dtype: str, writing: memoryview, into: str) -> int:
        """Move a box of elements of type `dtype`, read as they are stored, to where they are of type `into`.

        Gives how many of them become infinite by a cast.
        """
        stored, size = ITEM_SIZE[dtype], ITEM_SIZE[into]
        offset, strides = move.source_offset, move.source_strides
        if stored != size:
            offset, strides = offset // size * stored, tuple(stride // size * stored for stride in strides)
        source = np.ndarray(move.shape, f"u{stored}", reading, offset, strides)
        target = np.ndarray(move.shape, f"u{size}", writing, move.target_offset, move.target_strides)
        strips: list[tuple[slice, ...]] = [()]
        # A dim of one element is contiguous along none.
        dims = [dim for dim, length in enumerate(move.shape) if length > 1]
        dim = next((dim for dim in dims if move.target_strides[dim] == size), None)
        if dim is not None and dim != dims[-1]:
            # A transposition goes in strips, so that begun cache lines of the target are finished.
            starts = range(0, move.shape[dim], _STRIP)
            strips = [(slice(None),) * dim + (slice(start, start + _STRIP),) for start in starts]
        if dtype == into:
            for strip in strips:
                target[strip] = source[strip]
            return 0
        return sum(self._cast(source[strip], dtype, target[strip], into) for strip in strips)
