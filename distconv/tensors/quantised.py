"""Quantised weights: the codes of their elements, the scales of blocks of them, and the numbers that both stand for.

Owns the arithmetic, and which bytes of codes and of scales a range of elements needs. A number is its code's, times the
scale of its block, in float32, rounded once where numbers are of another type. Reads nothing, and knows no
configuration: where tensors are quantised so, a format says.

Sources: the formats' own libraries, whose results are equal for whole blocks (transformers, compressed-tensors); a
block that the tensor cuts off begins where the configured size says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import copysign
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distconv.tensors.casts import Cast
from distconv.tensors.dtypes import ITEM_SIZE, SCALE_BYTES
from distconv.tensors.stored import StoredTensor

# Elements of a box: their float32 stay in the cache, and their codes are one read of some size.
BOX_ELEMENTS = 2**18
# Of four bits: a sign, two bits of exponent, one of mantissa; and integers that are stored with 8 added.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_OFFSET = 8
# The largest scale of one byte that is a number of float32; the next one is twice that.
_LARGEST_EXPONENT = 254


@dataclass(frozen=True, slots=True)
class Box:
    """Elements that are dequantised together: rows of a tensor whose dims but the last are one, or a part of one row.

    `code_offset` and `code_bytes` are those of their codes, `scale_offset` and `scale_bytes` those of the rows of
    scales that they need, in bytes from the beginning of either tensor.
    """

    row: int
    rows: int
    column: int
    columns: int
    code_offset: int
    code_bytes: int
    scale_row: int
    scale_offset: int
    scale_bytes: int


def boxes(stored: StoredTensor, first: int, count: int) -> Iterator[Box]:
    """The boxes of `count` elements of a quantised tensor, of which `first` are before them in row-major order."""
    quantised = stored.quantised
    assert quantised is not None
    columns, end = stored.shape[-1], first + count
    scale_row_bytes = quantised.scales.shape[-1] * ITEM_SIZE[quantised.scales.dtype]
    while first < end:
        row, column = divmod(first, columns)
        if column or end - first < columns or columns > BOX_ELEMENTS:
            rows, width = 1, min(columns - column, end - first, BOX_ELEMENTS)
            begin, stop = column * quantised.bits // 8, -(-(column + width) * quantised.bits // 8)
        else:
            rows, width = min((end - first) // columns, BOX_ELEMENTS // columns), columns
            begin, stop = 0, rows * stored.row_bytes
        scale_row, last = (_scale_row(stored, each) for each in (row, row + rows - 1))
        yield Box(
            row,
            rows,
            column,
            width,
            row * stored.row_bytes + begin,
            stop - begin,
            scale_row,
            scale_row * scale_row_bytes,
            (last + 1 - scale_row) * scale_row_bytes,
        )
        first += rows * width


class Dequantise:
    """The dequantisation of boxes by one thread, with the array that it computes in."""

    def __init__(self) -> None:
        self._cast = Cast()
        self._numbers = np.empty(BOX_ELEMENTS, np.float32)

    def __call__(self, stored: StoredTensor, box: Box, codes: memoryview, scales: memoryview, made: memoryview) -> None:
        """Write the elements of a box, of the type that the tensor is read as, into the bytes `made`."""
        quantised = stored.quantised
        assert quantised is not None
        in_place = quantised.numbers == "float32"
        flat = np.frombuffer(made, np.float32) if in_place else self._numbers[: box.rows * box.columns]
        numbers = flat.reshape(box.rows, box.columns)
        _decode(quantised.code, np.frombuffer(codes, np.uint8).reshape(box.rows, -1), box.column, numbers)
        factors = np.frombuffer(scales, f"u{ITEM_SIZE[quantised.scales.dtype]}").reshape(-1, quantised.scales.shape[-1])
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for each in _scales(factors, quantised.scales.dtype, self._cast):
                _scale(stored, box, each, numbers)
        if not in_place:
            target = np.frombuffer(made, f"u{ITEM_SIZE[quantised.numbers]}")
            self._cast(flat.view(np.uint32), "float32", target, quantised.numbers)


def _scale_row(stored: StoredTensor, row: int) -> int:
    """The row of scales that a row of elements has, with the dims but the last one of both taken as one."""
    assert stored.quantised is not None
    rows, block = stored.shape[-2], stored.quantised.block[0]
    matrix, within = divmod(row, rows)
    return matrix * -(-rows // block) + within // block


def _decode(code: str, codes: NDArray[np.uint8], column: int, numbers: NDArray[np.float32]) -> None:
    """The numbers of codes; those of four bits begin in the low half of a byte."""
    if code in _BYTES:
        np.take(_bytes(code), codes, out=numbers, mode="clip")
        return
    pairs = np.take(_pairs(code), codes, mode="clip").view(np.float32)
    numbers[...] = pairs[:, column % 2 : column % 2 + numbers.shape[1]]


def _scales(bits: NDArray[Any], dtype: str, cast: Cast) -> Iterator[NDArray[np.float32]]:
    """What to multiply with, one after the other: the scales, and 2 where one is too large for float32 itself."""
    if dtype in SCALE_BYTES:
        yield np.ldexp(np.float32(1), np.minimum(bits, _LARGEST_EXPONENT).astype(np.int32) - 127).astype(np.float32)
        if (bits > _LARGEST_EXPONENT).any():
            yield np.where(bits > _LARGEST_EXPONENT, np.float32(2), np.float32(1))
        return
    single = np.empty(bits.shape, np.float32)
    cast(bits, dtype, single.view(np.uint32), "float32")
    yield single


def _scale(stored: StoredTensor, box: Box, scales: NDArray[np.float32], numbers: NDArray[np.float32]) -> None:
    """Multiply the numbers of a box with the scales of their blocks; `scales` are the rows that the box needs."""
    assert stored.quantised is not None
    block_rows, block = stored.quantised.block
    first, cut = divmod(box.column, block)
    needed = scales[:, first : -(-(box.column + box.columns) // block)]
    if block_rows == 1 and not cut and not box.columns % block:
        shaped = numbers.reshape(box.rows, -1, block)
        np.multiply(shaped, needed[:, :, None], out=shaped)
        return
    spread = np.repeat(needed, block, axis=1)[:, cut : cut + box.columns]
    row = 0
    while row < box.rows:
        # The rows up to the end of a block, or of the matrix.
        within = (box.row + row) % stored.shape[-2]
        stop = row + min(block_rows - within % block_rows, stored.shape[-2] - within, box.rows - row)
        part = numbers[row:stop]
        np.multiply(part, spread[_scale_row(stored, box.row + row) - box.scale_row], out=part)
        row = stop


def _e4m3(bits: int) -> float:
    """A number of float8_e4m3fn: no infinities, and one NaN of either sign."""
    exponent, mantissa, sign = bits >> 3 & 15, bits & 7, -1.0 if bits & 128 else 1.0
    if bits & 127 == 127:
        return copysign(float("nan"), sign)
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def _e2m1(bits: int) -> float:
    return -_E2M1[bits & 7] if bits & 8 else _E2M1[bits]


def _int4(bits: int) -> float:
    return float(bits - _OFFSET)


_BYTES: Mapping[str, Callable[[int], float]] = MappingProxyType({"float8_e4m3fn": _e4m3})
_HALVES: Mapping[str, Callable[[int], float]] = MappingProxyType({"mxfp4": _e2m1, "int4": _int4})


@cache
def _bytes(code: str) -> NDArray[np.float32]:
    return np.array([_BYTES[code](bits) for bits in range(256)], np.float32)


@cache
def _pairs(code: str) -> NDArray[np.uint64]:
    """The two numbers in each byte, as they follow each other in memory: one look-up for both."""
    of_half = _HALVES[code]
    return np.array([(of_half(bits & 15), of_half(bits >> 4)) for bits in range(256)], np.float32).view(np.uint64)[:, 0]
