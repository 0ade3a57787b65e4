"""The target boxes of copies: where two overlap, and which of many lie near one.

Owns the order in which few of many boxes have to be compared. Makes no copies.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

_Index = tuple[int, ...]


class Box(Protocol):
    """A box among the elements of a tensor: where it begins, and its lengths."""

    @property
    def target_start(self) -> _Index: ...  # noqa: D102 - as the class says

    @property
    def shape(self) -> _Index: ...  # noqa: D102


B = TypeVar("B", bound=Box)


class Found(Generic[B]):
    """Copies as they are found, out of pieces of `given` ones; kept in the order of where they begin along one dim."""

    def __init__(self, given: Sequence[B]) -> None:
        self.all: list[B] = []
        self._along = most_places(given)
        self._longest = max((copy.shape[self._along] for copy in given if copy.shape), default=0)
        self._ordered: list[B] = []
        self._starts: list[int] = []

    def near(self, copy: B) -> list[B]:
        """Those that may overlap with a copy."""
        if not copy.shape:
            return self.all
        start = copy.target_start[self._along]
        first = bisect_right(self._starts, start - self._longest)
        return self._ordered[first : bisect_left(self._starts, start + copy.shape[self._along])]

    def add(self, copy: B) -> None:
        """Add one."""
        self.all.append(copy)
        if copy.shape:
            start = copy.target_start[self._along]
            at = bisect_right(self._starts, start)
            self._starts.insert(at, start)
            self._ordered.insert(at, copy)


def most_places(copies: Sequence[Box]) -> int:
    """The dim with most places where copies begin: along it, fewest of them lie side by side."""
    places = [len(set(starts)) for starts in zip(*(copy.target_start for copy in copies), strict=True)]
    return places.index(max(places)) if places else 0


def overlap(one: Box, other: Box) -> tuple[_Index, _Index] | None:
    """Start and shape of the target box that is in both, if there is one."""
    starts, lengths = [], []
    for low, length, other_low, other_length in zip(
        one.target_start, one.shape, other.target_start, other.shape, strict=True
    ):
        start = max(low, other_low)
        common = min(low + length, other_low + other_length) - start
        if common <= 0:
            return None
        starts.append(start)
        lengths.append(common)
    return tuple(starts), tuple(lengths)
