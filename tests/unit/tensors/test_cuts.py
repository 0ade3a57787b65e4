"""Each tensor-parallel rule against numpy's splits, with the inverse that joins the shards again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.cuts import TENSOR_PARALLEL_RULES, uneven_lengths
from distconv.tensors.tiling import gaps
from distconv.tensors.virtual import invert, whole
from tests.unit.programs import numbered
from tests.unit.reference import evaluate

SIZES = st.integers(1, 4)
# What follows dim 0: nothing for a bias, a dim for a weight.
TAILS = st.sampled_from([(), (1,), (3,), (2, 3)])
WEIGHT_TAILS = st.sampled_from([(), (3,)])


def cut(rule: str, shape: tuple[int, ...], size: int, unit: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """The shards and the whole, after checking that the inverse joins the shards to the whole."""
    tensor, array = whole("float32", shape), numbered(shape)
    shards = TENSOR_PARALLEL_RULES[rule].cut(tensor, size, unit)
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


@given(SIZES, SIZES, SIZES, WEIGHT_TAILS)
def test_cols_are_equal_blocks_along_dim_1(size, rows, columns, tail):
    found, array = cut("cols", (rows, size * columns, *tail), size)
    assert_equal(found, np.split(array, size, axis=1))


@pytest.mark.parametrize("rule", ["cols", "cols_uneven"])
@given(size=SIZES, rows=SIZES)
def test_cols_of_a_bias_is_the_whole_bias_on_every_rank(rule, size, rows):
    found, array = cut(rule, (rows,), size)
    assert_equal(found, [array] * size)


@pytest.mark.parametrize(("rule", "parts"), [("glu", 2), ("rows3", 3)])
@given(size=SIZES, rows=SIZES, tail=TAILS)
def test_blockwise_rules_give_a_rank_its_block_of_each_part(rule, parts, size, rows, tail):
    found, array = cut(rule, (parts * size * rows, *tail), size)
    expected = np.concatenate([part.reshape(size, rows, *tail) for part in np.split(array, parts)], axis=1)
    assert_equal(found, list(expected))


@given(SIZES, SIZES, SIZES, TAILS)
def test_a_unit_that_divides_changes_nothing(size, units, width, tail):
    rows = size * units * width
    for rule, parts in (("rows", 1), ("glu", 2), ("rows3", 3)):
        assert_equal(cut(rule, (parts * rows, *tail), size, size * units)[0], cut(rule, (parts * rows, *tail), size)[0])
    assert_equal(cut("cols", (2, rows), size, size * units)[0], cut("cols", (2, rows), size)[0])


@given(st.integers(1, 8), st.integers(1, 9), SIZES, TAILS)
def test_uneven_rows_are_whole_units_of_which_the_first_ranks_have_one_more(size, units, width, tail):
    found, array = cut("rows_uneven", (units * width, *tail), size, units)
    expected = np.array_split(array.reshape(units, width, *tail), size)
    assert_equal(found, [part.reshape(-1, *tail) for part in expected])


@given(st.integers(1, 8), st.integers(1, 9), TAILS)
def test_without_a_unit_every_row_is_one(size, rows, tail):
    found, array = cut("rows_uneven", (rows, *tail), size)
    assert_equal(found, np.array_split(array, size))


@given(st.integers(1, 8), st.integers(1, 9), SIZES, SIZES)
def test_uneven_columns(size, units, width, rows):
    found, array = cut("cols_uneven", (rows, units * width), size, units)
    expected = np.array_split(array.reshape(rows, units, width), size, axis=1)
    assert_equal(found, [part.reshape(rows, -1) for part in expected])


@given(st.integers(1, 8), st.integers(1, 9), SIZES, TAILS)
def test_uneven_rows_of_fused_qkv_are_a_ranks_units_of_q_then_of_k_then_of_v(size, units, width, tail):
    found, array = cut("rows3_uneven", (3 * units * width, *tail), size, units)
    parts = [np.array_split(part.reshape(units, width, *tail), size) for part in np.split(array, 3)]
    expected = [np.concatenate(of_rank).reshape(-1, *tail) for of_rank in zip(*parts, strict=True)]
    assert_equal(found, expected)


@given(st.integers(1, 40), st.integers(1, 40), SIZES)
def test_uneven_lengths_differ_by_at_most_a_unit(size, units, width):
    lengths = uneven_lengths(units * width, size, units)
    assert len(lengths) == size
    assert sum(lengths) == units * width
    assert sorted(lengths, reverse=True) == list(lengths)
    assert lengths[0] - lengths[-1] in (0, width)


@pytest.mark.parametrize(
    ("rule", "shape", "size", "unit", "message"),
    [
        ("rows", (6, 4), 4, None, r"dim 0 of shape \[6, 4\] does not divide into 4 equal pieces"),
        ("rows", (2,), 4, None, r"dim 0 of shape \[2\] does not divide into 4"),
        ("rows", (8, 4), 4, 2, r"dim 0 of shape \[8, 4\] does not divide into 4 parts of whole 2 units"),
        ("rows", (8, 4), 2, 6, r"dim 0 of shape \[8, 4\] does not divide into 2 parts of whole 6 units"),
        ("cols", (4, 6), 4, None, r"dim 1 of shape \[4, 6\] does not divide into 4"),
        ("cols", (4, 8), 4, 2, r"dim 1 of shape \[4, 8\] does not divide into 4 parts of whole 2 units"),
        ("glu", (7, 4), 1, None, r"dim 0 of shape \[7, 4\] does not divide into 2"),
        ("glu", (6, 4), 2, None, r"dim 0 of shape \[3, 4\] does not divide into 2"),
        ("rows3", (8, 4), 2, None, r"dim 0 of shape \[8, 4\] does not divide into 3"),
        ("rows3", (9, 4), 2, None, r"dim 0 of shape \[3, 4\] does not divide into 2"),
        ("rows3", (12, 4), 2, 1, r"dim 0 of shape \[4, 4\] does not divide into 2 parts of whole 1 units"),
        ("rows_uneven", (7, 4), 2, 3, "7 does not divide into 3 units"),
        ("cols_uneven", (4, 7), 2, 3, "7 does not divide into 3 units"),
        ("rows3_uneven", (8, 4), 2, None, r"dim 0 of shape \[8, 4\] does not divide into 3"),
        ("rows3_uneven", (21, 4), 2, 3, "7 does not divide into 3 units"),
    ],
)
def test_a_size_that_does_not_divide_is_an_error_never_a_truncation(rule, shape, size, unit, message):
    with pytest.raises(ValueError, match=message):
        TENSOR_PARALLEL_RULES[rule].cut(whole("float32", shape), size, unit)


def test_the_registry_says_which_rules_are_uneven_and_of_which_parts_a_dim_consists():
    assert {name: (rule.uneven, rule.parts) for name, rule in TENSOR_PARALLEL_RULES.items()} == {
        "replicated": (False, 1),
        "rows": (False, 1),
        "cols": (False, 1),
        "glu": (False, 2),
        "rows3": (False, 3),
        "rows_uneven": (True, 1),
        "rows3_uneven": (True, 3),
        "cols_uneven": (True, 1),
    }


@pytest.mark.parametrize("rule", TENSOR_PARALLEL_RULES)
@pytest.mark.parametrize("shape", [(12,), (12, 12), (12, 12, 12)])
def test_the_pieces_differ_from_the_whole_in_the_dim_that_is_cut_and_in_no_other(rule, shape):
    rule_of_cut = TENSOR_PARALLEL_RULES[rule]
    for shard in rule_of_cut.cut(whole("float32", shape), 2, None):
        changed = [dim for dim, length in enumerate(shard.shape) if length != shape[dim]]
        dim = rule_of_cut.dim_of(shape)
        assert changed == ([] if dim is None else [dim])
