"""Each tensor-parallel rule against numpy's splits, with the inverse that joins the shards again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensor_parallel import TENSOR_PARALLEL_RULES
from distconv.virtual import gaps, invert, whole
from tests.unit.programs import numbered
from tests.unit.reference import evaluate

SIZES = st.integers(1, 4)
TAILS = st.sampled_from([(), (1,), (3,), (2, 3)])


def cut(rule: str, shape: tuple[int, ...], size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The shards and the whole, after checking that the inverse joins the shards to the whole."""
    tensor, array = whole("float32", shape), numbered(shape)
    shards = TENSOR_PARALLEL_RULES[rule](tensor, size)
    found = [evaluate(shard, [array]) for shard in shards]
    (joined,) = invert(shards, [("float32", shape)])
    np.testing.assert_array_equal(evaluate(joined, found), array)
    assert gaps(joined) == 0
    assert all(gaps(shard) == 0 for shard in shards)
    return found, array


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@given(SIZES, SIZES, TAILS)
def test_replicated_gives_every_rank_the_whole(size, rows, tail):
    found, array = cut("replicated", (rows, *tail), size)
    assert_equal(found, [array] * size)


@given(SIZES, SIZES, TAILS)
def test_rows_are_equal_blocks_along_dim_0_of_weights_and_of_biases(size, rows, tail):
    found, array = cut("rows", (size * rows, *tail), size)
    assert_equal(found, np.split(array, size))


@given(SIZES, SIZES, SIZES, st.sampled_from([(), (3,)]))
def test_cols_are_equal_blocks_along_dim_1(size, rows, columns, tail):
    found, array = cut("cols", (rows, size * columns, *tail), size)
    assert_equal(found, np.split(array, size, axis=1))


@given(SIZES, SIZES)
def test_cols_of_a_bias_is_the_whole_bias_on_every_rank(size, rows):
    found, array = cut("cols", (rows,), size)
    assert_equal(found, [array] * size)


@pytest.mark.parametrize(("rule", "parts"), [("glu", 2), ("rows3", 3)])
@given(size=SIZES, rows=SIZES, tail=TAILS)
def test_blockwise_rules_give_a_rank_its_block_of_each_part(rule, parts, size, rows, tail):
    found, array = cut(rule, (parts * size * rows, *tail), size)
    expected = np.concatenate([part.reshape(size, rows, *tail) for part in np.split(array, parts)], axis=1)
    assert_equal(found, list(expected))


@pytest.mark.parametrize(
    ("rule", "shape", "size", "message"),
    [
        ("rows", (6, 4), 4, r"dim 0 of shape \[6, 4\] does not divide into 4 equal pieces"),
        ("rows", (2,), 4, r"dim 0 of shape \[2\] does not divide into 4"),
        ("cols", (4, 6), 4, r"dim 1 of shape \[4, 6\] does not divide into 4"),
        ("glu", (7, 4), 1, r"dim 0 of shape \[7, 4\] does not divide into 2"),
        ("glu", (6, 4), 2, r"dim 0 of shape \[3, 4\] does not divide into 2"),
        ("rows3", (8, 4), 2, r"dim 0 of shape \[8, 4\] does not divide into 3"),
        ("rows3", (9, 4), 2, r"dim 0 of shape \[3, 4\] does not divide into 2"),
    ],
)
def test_a_size_that_does_not_divide_is_an_error_never_a_truncation(rule, shape, size, message):
    with pytest.raises(ValueError, match=message):
        TENSOR_PARALLEL_RULES[rule](whole("float32", shape), size)


def test_the_rules_are_these():
    assert sorted(TENSOR_PARALLEL_RULES) == ["cols", "glu", "replicated", "rows", "rows3"]
