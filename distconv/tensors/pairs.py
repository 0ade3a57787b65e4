"""Pairs of tensors of two checkpoints that are compared element by element, and the parts in which that is done.

Owns the record, and how pairs are divided: by bytes, whatever the sizes of tensors. Compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from distconv.tensors.compose import box_of, contiguous_blocks
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Assembled
from distconv.tensors.virtual import Index


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tensors of one shape and one element type, under one name; what is stored in another type is cast."""

    name: str
    one: Assembled
    other: Assembled

    @property
    def shape(self) -> Index:
        """The shape of both."""
        return self.one.tensor.shape

    @property
    def dtype(self) -> str:
        """The element type of both."""
        return self.one.tensor.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes of both together."""
        return self.one.nbytes + self.other.nbytes


@dataclass(frozen=True, slots=True)
class PairPart:
    """A contiguous box of both tensors of a pair; `number`: the place of the pair in a list of them."""

    number: int
    pair: Pair
    start: Index
    lengths: Index

    @property
    def nbytes(self) -> int:
        """Size in bytes of both sides together."""
        return 2 * prod(self.lengths) * ITEM_SIZE[self.pair.dtype]

    @property
    def position(self) -> int:
        """The position of its first element in row-major order."""
        return sum(low * prod(self.pair.shape[dim + 1 :]) for dim, low in enumerate(self.start))

    @property
    def sides(self) -> tuple[Assembled, Assembled]:
        """The part of either tensor."""
        one, other = self.pair.one, self.pair.other
        return (
            Assembled(one.sources, box_of(one.tensor, self.start, self.lengths)),
            Assembled(other.sources, box_of(other.tensor, self.start, self.lengths)),
        )

    def blocks(self, nbytes: int) -> Iterator[PairPart]:
        """The part in contiguous parts of at most so many bytes of either side, but of one element at least."""
        for start, lengths in contiguous_blocks(self.lengths, max(nbytes // ITEM_SIZE[self.pair.dtype], 1)):
            begin = tuple(low + further for low, further in zip(self.start, start, strict=True))
            yield PairPart(self.number, self.pair, begin, lengths)


def parts_of(pairs: Sequence[Pair], nbytes: int) -> Iterator[PairPart]:
    """Pairs in contiguous parts of at most so many bytes of either side; those without elements have none."""
    for number, pair in enumerate(pairs):
        yield from PairPart(number, pair, (0,) * len(pair.shape), pair.shape).blocks(nbytes)
