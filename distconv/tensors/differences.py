"""How tensors differ: elements of two runs of bytes compared, and pairs of tensors that are to be compared.

Owns the arithmetic. Two elements are the same if their bits are: a NaN equals itself, and zero is not minus zero. How
far numbers are apart is computed in float64, which holds those of all types. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distconv.tensors.dtypes import FLOATING, ITEM_SIZE

# Elements at a time: their float64 stay in the cache.
_PIECE = 2**15


@dataclass(frozen=True, slots=True)
class Farthest:
    """The two numbers that are farthest apart: their distance, their position in row-major order, and themselves.

    A number is infinitely far from a NaN, and from another infinity; two NaN of different bits are not apart.
    """

    distance: float
    at: int
    numbers: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Difference:
    """The elements that differ: how many, the position of the first in row-major order, and of floats the farthest."""

    elements: int
    first: int
    farthest: Farthest | None

    def moved(self, by: int) -> Difference:
        """The same, where the elements compared begin at position `by` of a tensor."""
        farthest = self.farthest
        moved = None if farthest is None else replace(farthest, at=farthest.at + by)
        return Difference(self.elements, self.first + by, moved)

    def to_json(self) -> list[Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        farthest = self.farthest
        told = None if farthest is None else [farthest.distance, farthest.at, *farthest.numbers]
        return [self.elements, self.first, told]

    @staticmethod
    def from_json(data: Sequence[Any]) -> Difference:
        """The difference in the data of `to_json`."""
        elements, first, told = data
        return Difference(elements, first, None if told is None else Farthest(told[0], told[1], (told[2], told[3])))


def difference(one: memoryview, other: memoryview, dtype: str) -> Difference | None:
    """The difference between equally many contiguous elements of one type; `None` if there is none."""
    first, second = (np.frombuffer(data, f"u{ITEM_SIZE[dtype]}") for data in (one, other))
    places = np.flatnonzero(first != second)
    if not len(places):
        return None
    farthest = None
    if dtype in FLOATING:
        pieces = (places[start : start + _PIECE] for start in range(0, len(places), _PIECE))
        farthest = max(
            (_farthest(_numbers(first[each], dtype), _numbers(second[each], dtype), each) for each in pieces),
            key=_how_far,
        )
    return Difference(len(places), int(places[0]), farthest)


def together(parts: Iterable[Difference]) -> Difference:
    """The difference of a tensor whose parts have these, in whatever order they come."""
    return reduce(_joined, parts)


def _joined(one: Difference, other: Difference) -> Difference:
    known = [each for each in (one.farthest, other.farthest) if each is not None]
    farthest = max(known, key=_how_far, default=None)
    return Difference(one.elements + other.elements, min(one.first, other.first), farthest)


def _how_far(found: Farthest) -> tuple[float, int]:
    """Among numbers that are as far apart, the first ones, so that it does not depend on how a tensor is divided."""
    return found.distance, -found.at


def _farthest(one: NDArray[np.float64], other: NDArray[np.float64], places: NDArray[Any]) -> Farthest:
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.abs(one - other)
    is_no_number = np.isnan(distances)
    distances[is_no_number] = inf
    distances[is_no_number & np.isnan(one) & np.isnan(other)] = 0.0
    at = int(np.argmax(distances))
    return Farthest(float(distances[at]), int(places[at]), (float(one[at]), float(other[at])))


def _numbers(bits: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Elements of a floating type as float64, which changes none."""
    if dtype == "bfloat16":
        bits, dtype = bits.astype(np.uint32) << np.uint32(16), "float32"
    with np.errstate(invalid="ignore"):
        return bits.view(dtype).astype(np.float64)
