"""Casts between floating element types: elements rounded to nearest, ties to even, as torch's `.to()` rounds them.

Owns the arithmetic, which is that of torch to the bit but for NaN, where torch depends on how its code was compiled: a
NaN becomes the quiet NaN of its sign (0x7fc0 in bfloat16, 0x7e00 in float16, 0x7fc00000 in float32). float64 becomes
bfloat16 and float16 through float32, as in torch. Reads and writes nothing, and decides nothing.

In numpy: its passes over pieces that stay in the cache are faster than file systems, so that importing torch, which
takes a second, does not pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distconv.tensors.compose import contiguous_blocks
from distconv.tensors.dtypes import ITEM_SIZE

# Elements at a time: few enough for all arrays to stay in the cache, enough for the time to be spent in numpy.
_PIECE = 2**15
_ODD, _MAGNITUDE, _SIGN = np.uint32(1), np.uint32(0x7FFFFFFF), np.uint32(0x8000)
# To bfloat16: the places that are lost, and half of the last one that stays, but for one.
_HIGH, _HALF = np.uint32(16), np.uint32(0x7FFF)
# To float16: the places, the half with the difference of the exponents' biases, the least normal number as float32, and
# a half as bits of float32, beside which numbers that are smaller have the places of subnormal ones.
_PLACES, _REBIASED, _NORMAL = np.uint32(13), np.uint32(0xC8000FFF), np.uint32(0x38800000)
_ONE_HALF, _BESIDE = np.float32(0.5), np.uint32(0x3F000000)
# Of each type: sign, quiet NaN, infinity; and the least float32, as bits, that is infinite or NaN after a cast.
_BITS: Mapping[str, tuple[int, int, int, int]] = MappingProxyType(
    {
        "float64": (1 << 63, 0x7FF8 << 48, 0x7FF << 52, 0x7F800000),
        "float32": (1 << 31, 0x7FC0 << 16, 0x7F800000, 0x7F800000),
        "float16": (0x8000, 0x7E00, 0x7C00, 0x477FF000),
        "bfloat16": (0x8000, 0x7FC0, 0x7F80, 0x7F7F8000),
    }
)


class Cast:
    """Casts of one thread, with the arrays that they compute in."""

    def __init__(self) -> None:
        # Kept, since large arrays that come and go cost more than what is done with them.
        self._wide = np.empty(_PIECE, np.float32)
        self._bits, self._more = np.empty(_PIECE, np.uint32), np.empty(_PIECE, np.uint32)

    def __call__(self, given: NDArray[Any], dtype: str, made: NDArray[Any], into: str) -> int:
        """Cast elements of the floating type `dtype` to the type `into`; the number that became infinite by that.

        Both arrays have the same shape, of one dim or more, and hold elements as integers of their size, with any
        strides; they do not overlap.
        """
        boxes = (
            tuple(slice(low, low + length) for low, length in zip(*block, strict=True))
            for block in contiguous_blocks(made.shape, _PIECE)
        )
        with np.errstate(over="ignore", invalid="ignore"):
            return sum(self._piece(given[box], dtype, made[box], into) for box in boxes)

    def _piece(self, given: NDArray[Any], dtype: str, made: NDArray[Any], into: str) -> int:
        single = self._single(given, dtype)
        source, bits = single.view(np.uint32), self._bits[: made.size].reshape(made.shape)
        np.bitwise_and(source, _MAGNITUDE, out=bits)
        is_regular = bits.max() < _BITS[into][3]
        if into == "bfloat16":
            made[...] = _as_bfloat16(source, bits)
        elif into == "float16":
            made[...] = _as_float16(source, bits, self._more[: made.size].reshape(made.shape), fits=is_regular)
        else:
            made.view(into)[...] = single
        return 0 if is_regular else _irregular(given.view(np.float64) if dtype == "float64" else single, made, into)

    def _single(self, given: NDArray[Any], dtype: str) -> NDArray[np.float32]:
        """The elements as float32, which holds those of all types but float64."""
        if dtype == "float32":
            return given.view(np.float32)
        single = self._wide[: given.size].reshape(given.shape)
        if dtype == "bfloat16":
            np.left_shift(given, _HIGH, out=single.view(np.uint32), dtype=np.uint32)
        elif dtype == "float16":
            np.take(_halves(), given, out=single, mode="clip")
        else:
            single[...] = given.view(np.float64)
        return single


def _as_bfloat16(source: NDArray[np.uint32], bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Bits of float32 as those of bfloat16, in `bits`; of NaN something else."""
    _round(source, _HIGH, _HALF, bits)
    return bits


def _as_float16(
    source: NDArray[np.uint32], magnitude: NDArray[np.uint32], bits: NDArray[np.uint32], *, fits: bool
) -> NDArray[np.uint32]:
    """Bits of float32 as those of float16, in `magnitude`, which has those of absolute values; of NaN something else.

    `fits`: none of the numbers becomes infinite.
    """
    _round(magnitude, _PLACES, _REBIASED, bits)
    if not fits:
        np.minimum(bits, np.uint32(_BITS["float16"][2]), out=bits)
    is_small = magnitude < _NORMAL
    np.add(magnitude.view(np.float32), _ONE_HALF, out=magnitude.view(np.float32))
    np.subtract(magnitude, _BESIDE, out=magnitude)
    np.copyto(bits, magnitude, where=is_small)
    np.right_shift(source, _HIGH, out=magnitude)
    np.bitwise_and(magnitude, _SIGN, out=magnitude)
    np.bitwise_or(magnitude, bits, out=magnitude)
    return magnitude


def _round(source: NDArray[np.uint32], places: np.uint32, half: np.uint32, bits: NDArray[np.uint32]) -> None:
    """Drop so many places of numbers, rounding to nearest and halves to even, in `bits`.

    `half` is a little less than half of what one counts that is kept, plus what else is to be added.
    """
    np.right_shift(source, places, out=bits)
    np.bitwise_and(bits, _ODD, out=bits)
    np.add(bits, half, out=bits)
    np.add(bits, source, out=bits)
    np.right_shift(bits, places, out=bits)


def cast_bytes(source: memoryview, dtype: str, target: memoryview, into: str) -> int:
    """As `Cast`, for contiguous bytes of equally many elements."""
    given, made = (np.frombuffer(data, f"u{ITEM_SIZE[kind]}") for data, kind in ((source, dtype), (target, into)))
    return Cast()(given, dtype, made, into)


def _irregular(numbers: NDArray[Any], made: NDArray[Any], into: str) -> int:
    """Mend what was made of NaN, among numbers some of which are none or too large; how many became infinite."""
    sign, quiet, infinity, _ = _BITS[into]
    negative, nan = np.signbit(numbers), np.isnan(numbers)
    made[nan] = quiet
    made[nan & negative] = quiet | sign
    is_infinite = (made & made.dtype.type(sign - 1)) == infinity
    return int(np.count_nonzero(np.isfinite(numbers) & is_infinite))


@cache
def _halves() -> NDArray[np.float32]:
    """All numbers of float16, by their bits: to look one up is several times as fast as to compute it."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
