"""Random programs of the algebra, each beside the array that numpy makes of the same steps.

Operands hold consecutive numbers from 1 on, so an element says where it comes from, and 0 says that it has no source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from hypothesis import strategies as st

from distconv.tensors.virtual import VirtualTensor, chunk, concat, invert, narrow, permute, select, split, whole, zeros

_MAX_RANK = 4
_MAX_LENGTH = 5
_MAX_ELEMENTS = 2000


@dataclass(frozen=True)
class Value:
    """A virtual tensor and the array that it must stand for."""

    tensor: VirtualTensor
    array: np.ndarray


@dataclass(frozen=True)
class Program:
    """Several values over the same operands."""

    operands: list[np.ndarray]
    values: list[Value]
    dtype: str

    @property
    def tensors(self) -> list[VirtualTensor]:
        return [value.tensor for value in self.values]


def numbered(shape: Sequence[int], first: int = 1) -> np.ndarray:
    """An array of consecutive numbers."""
    return np.arange(first, first + prod(shape), dtype=np.int64).reshape(tuple(shape))


def shapes(min_rank: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(1, _MAX_LENGTH), min_size=min_rank, max_size=_MAX_RANK).map(tuple)


@st.composite
def programs(draw: st.DrawFn, dtype: str = "float32", max_values: int = 3) -> Program:
    """Programs of whole, zeros, concat, narrow, split, chunk, select, permute and invert."""
    writer = _Writer(draw, dtype)
    values = []
    for _ in range(draw(st.integers(1, max_values))):
        # Sometimes another piece of the value before, as shards are.
        value = values[-1] if values and draw(st.booleans()) else writer.leaf(draw(shapes()))
        for _ in range(draw(st.integers(0, 5))):
            value = writer.step(value)
        values.append(value)
    return Program(writer.operands, values, dtype)


class _Writer:
    def __init__(self, draw: st.DrawFn, dtype: str) -> None:
        self.operands: list[np.ndarray] = []
        self._draw = draw
        self._dtype = dtype

    def leaf(self, shape: tuple[int, ...]) -> Value:
        kind = self._draw(st.sampled_from(["whole", "whole", "whole", "zeros", "stack"]))
        if kind == "zeros":
            return Value(zeros(self._dtype, shape), np.zeros(shape, np.int64))
        if kind == "stack" and shape and all(shape):
            return self._stack(shape)
        return self._whole(shape)

    def _whole(self, shape: tuple[int, ...]) -> Value:
        array = numbered(shape, 1 + sum(each.size for each in self.operands))
        self.operands.append(array)
        return Value(whole(self._dtype, shape, len(self.operands) - 1), array)

    def _stack(self, shape: tuple[int, ...]) -> Value:
        """Operands stacked along a new dim: the inverse of selecting each of them."""
        dim = self._draw(st.integers(0, len(shape) - 1))
        first = len(self.operands)
        parts = [self._whole((*shape[:dim], *shape[dim + 1 :])) for _ in range(shape[dim])]
        stacked = whole(self._dtype, shape)
        others = [zeros(self._dtype, ())] * first
        selected = [select(stacked, dim, position) for position in range(shape[dim])]
        (tensor,) = invert(others + selected, [(self._dtype, shape)])
        return Value(tensor, np.stack([part.array for part in parts], axis=dim))

    def step(self, value: Value) -> Value:
        draw, tensor, array = self._draw, value.tensor, value.array
        kind = draw(st.sampled_from(["permute", "narrow", "split", "chunk", "select", "concat"]))
        if array.ndim == 0 or kind == "permute":
            order = draw(st.permutations(range(array.ndim)))
            return Value(permute(tensor, order), array.transpose(order))
        dim = draw(st.integers(0, array.ndim - 1))
        length = array.shape[dim]
        if kind == "narrow":
            start = draw(st.integers(0, length))
            kept = draw(st.integers(0, length - start))
            return Value(narrow(tensor, dim, start, kept), array.take(range(start, start + kept), dim))
        if kind == "split":
            cuts = sorted(draw(st.lists(st.integers(0, length), max_size=3)))
            lengths = np.diff([0, *cuts, length]).tolist()
            pieces = list(zip(split(tensor, lengths, dim), np.split(array, cuts, dim), strict=True))
            return Value(*draw(st.sampled_from(pieces)))
        if kind == "chunk":
            count = draw(st.sampled_from([count for count in range(1, length + 1) if length % count == 0] or [1, 2]))
            pieces = list(zip(chunk(tensor, count, dim), np.split(array, count, dim), strict=True))
            return Value(*draw(st.sampled_from(pieces)))
        if kind == "select" and length:
            position = draw(st.integers(0, length - 1))
            return Value(select(tensor, dim, position), array.take(position, dim))
        if kind == "concat" and array.size <= _MAX_ELEMENTS:
            return self._concat(value, dim)
        return value

    def _concat(self, value: Value, dim: int) -> Value:
        draw, shape = self._draw, value.array.shape
        parts = [value]
        for _ in range(draw(st.integers(0, 2))):
            other = draw(st.sampled_from(["again", "new"]))
            length = draw(st.integers(0, _MAX_LENGTH))
            new = (*shape[:dim], length, *shape[dim + 1 :])
            parts.insert(draw(st.integers(0, len(parts))), value if other == "again" else self.leaf(new))
        return Value(
            concat([part.tensor for part in parts], dim), np.concatenate([part.array for part in parts], axis=dim)
        )
