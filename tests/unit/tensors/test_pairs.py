"""Pairs are divided by bytes into contiguous boxes that cover each element once, whatever the shape."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.pairs import Pair, parts_of
from distconv.tensors.stored import NOWHERE, Assembled, StoredTensor
from distconv.tensors.virtual import permute, whole

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def pair(shape: tuple[int, ...], dtype: str = "float32") -> Pair:
    one = Assembled((StoredTensor("a", dtype, shape, NOWHERE, 0),), whole(dtype, shape))
    turned = tuple(reversed(shape))
    other = Assembled(
        (StoredTensor("b", dtype, turned, NOWHERE, 0),),
        permute(whole(dtype, turned), tuple(reversed(range(len(shape))))),
    )
    return Pair("a", one, other)


@given(st.lists(SHAPES, max_size=3), st.integers(4, 200), st.integers(4, 40))
def test_each_element_is_in_one_block_of_one_part(shapes, large, small):
    pairs = [pair(shape) for shape in shapes]
    counted = [np.zeros(prod(shape), int) for shape in shapes]
    for part in parts_of(pairs, large):
        assert part.nbytes <= 2 * large
        for block in part.blocks(small):
            assert block.nbytes <= 2 * small
            assert (block.number, block.pair) == (part.number, pairs[part.number])
            counted[block.number][block.position : block.position + block.nbytes // 8] += 1
            assert [side.tensor.shape for side in block.sides] == [block.lengths] * 2
            assert [side.sources[0].name for side in block.sides] == ["a", "b"]
    assert all((each == 1).all() for each in counted)


def test_an_element_is_never_divided():
    (part,) = parts_of([pair((1, 1), "float64")], 3)
    assert part.nbytes == 16


def test_a_pair_is_as_large_as_both_sides():
    assert pair((2, 3)).nbytes == 48
    assert (pair((2, 3)).shape, pair((2, 3)).dtype) == ((2, 3), "float32")


@pytest.mark.parametrize(("block", "position"), [(0, 0), (1, 12), (2, 24)])
def test_a_position_is_that_of_the_first_element_in_row_major_order(block, position):
    parts = list(parts_of([pair((3, 4, 3))], 48))
    assert parts[block].position == position
