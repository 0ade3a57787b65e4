"""Each operator means what its sentence says, in numpy's reshape and stack, and its inverse restores the sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.operators import OPERATORS
from distconv.tensors.virtual import VirtualTensor, gaps, invert, whole
from tests.unit.programs import numbered
from tests.unit.reference import evaluate

SIZES = st.integers(1, 4)
# What follows dim 0: nothing for a bias, a dim for a weight.
TAILS = st.sampled_from([(), (1,), (3,), (2, 3)])


def operands(shapes: Sequence[tuple[int, ...]]) -> tuple[list[VirtualTensor], list[np.ndarray]]:
    tensors, arrays = [], []
    for number, shape in enumerate(shapes):
        tensors.append(whole("bfloat16", shape, number))
        arrays.append(numbered(shape, 1 + sum(array.size for array in arrays)))
    return tensors, arrays


def apply(name: str, shapes: Sequence[tuple[int, ...]], *sizes: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The result of an operator and its sources, after checking that the inverse of the result restores them."""
    tensors, arrays = operands(shapes)
    result = OPERATORS[name].apply(*tensors, *sizes)
    found = evaluate(result, arrays)
    assert gaps(result) == np.count_nonzero(found == 0)
    for back, array in zip(invert([result], [("bfloat16", shape) for shape in shapes]), arrays, strict=True):
        np.testing.assert_array_equal(evaluate(back, [found]), array)
        assert gaps(back) == 0
    return found, arrays


@given(SIZES, TAILS)
def test_rename_is_the_source(rows, tail):
    found, (source,) = apply("rename", [(rows, *tail)])
    np.testing.assert_array_equal(found, source)


@given(st.lists(SIZES, min_size=2, max_size=4), TAILS)
def test_concat_is_the_sources_one_after_the_other(rows, tail):
    found, sources = apply("concat", [(each, *tail) for each in rows])
    np.testing.assert_array_equal(found, np.concatenate(sources))


@given(SIZES, SIZES, SIZES, TAILS)
def test_qkv_group_is_for_each_group_its_rows_of_q_then_of_k_then_of_v(groups, query_rows, key_rows, tail):
    shapes = [(groups * rows, *tail) for rows in (query_rows, key_rows, key_rows)]

    found, (query, key, value) = apply("qkv_group", shapes, groups)

    of_group = [part.reshape(groups, -1, *tail) for part in (query, key, value)]
    np.testing.assert_array_equal(found, np.concatenate(of_group, axis=1).reshape(-1, *tail))


@given(SIZES, SIZES, TAILS)
def test_qkv_heads_is_for_each_head_its_rows_of_q_then_of_k_then_of_v(heads, head_rows, tail):
    found, (fused,) = apply("qkv_heads", [(3 * heads * head_rows, *tail)], heads)

    query, key, value = fused.reshape(3, heads, head_rows, *tail)
    np.testing.assert_array_equal(found, np.stack([query, key, value], axis=1).reshape(-1, *tail))


@given(SIZES, SIZES, SIZES, TAILS)
def test_qzv_group_has_zeros_for_a_k_in_the_shape_of_v(groups, query_rows, value_rows, tail):
    shapes = [(groups * query_rows, *tail), (groups * value_rows, *tail)]

    found, (query, value) = apply("qzv_group", shapes, groups)

    of_group = [part.reshape(groups, -1, *tail) for part in (query, np.zeros_like(value), value)]
    np.testing.assert_array_equal(found, np.concatenate(of_group, axis=1).reshape(-1, *tail))


@given(SIZES, SIZES)
def test_transpose_exchanges_two_dims(rows, columns):
    found, (source,) = apply("transpose", [(rows, columns)])
    np.testing.assert_array_equal(found, source.T)


@given(SIZES, SIZES, TAILS)
def test_both_qkv_operators_agree_where_each_group_has_one_query_head(heads, head_rows, tail):
    fused, (source,) = apply("qkv_heads", [(3 * heads * head_rows, *tail)], heads)
    tensors, _ = operands([(heads * head_rows, *tail)] * 3)
    grouped = OPERATORS["qkv_group"].apply(*tensors, heads)
    np.testing.assert_array_equal(evaluate(grouped, np.split(source, 3)), fused)


@pytest.mark.parametrize(
    ("name", "shapes", "sizes", "message"),
    [
        ("concat", [(4, 2), (4, 3)], (), r"\[4, 2\] and \[4, 3\]"),
        ("qkv_group", [(8, 2), (4, 2), (2, 2)], (2,), r"k has shape \[4, 2\] and v has \[2, 2\]"),
        ("qkv_group", [(8, 3), (4, 2), (4, 2)], (2,), r"\[4, 3\] and \[2, 2\]"),
        ("qkv_group", [(9, 2), (4, 2), (4, 2)], (2,), r"shape \[9, 2\] does not divide into 2"),
        ("qkv_group", [(8, 2), (3, 2), (3, 2)], (2,), r"shape \[3, 2\] does not divide into 2"),
        ("qzv_group", [(9, 2), (4, 2)], (2,), r"shape \[9, 2\] does not divide into 2"),
        ("transpose", [(4,)], (), r"\[1, 0\] is not an order of the dims of shape \[4\]"),
        ("transpose", [(4, 2, 3)], (), r"\[1, 0\] is not an order of the dims of shape \[4, 2, 3\]"),
        ("qkv_heads", [(8, 2)], (2,), r"shape \[8, 2\] does not divide into 3"),
        ("qkv_heads", [(12, 2)], (3,), r"shape \[4, 2\] does not divide into 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, shapes, sizes, message):
    tensors, _ = operands(shapes)
    with pytest.raises(ValueError, match=message):
        OPERATORS[name].apply(*tensors, *sizes)


@pytest.mark.parametrize("name", ["concat", "qkv_group"])
def test_sources_of_two_element_types_are_refused(name):
    tensors = [whole("float32", (4, 2)), whole("float32", (4, 2), 1), whole("bfloat16", (4, 2), 2)]
    with pytest.raises(ValueError, match="cannot concatenate bfloat16 with float32"):
        OPERATORS[name].apply(*tensors, *([2] if name == "qkv_group" else []))


def test_the_registry_says_how_each_operator_is_called():
    assert {name: (operator.sources, operator.sizes) for name, operator in OPERATORS.items()} == {
        "rename": (1, ()),
        "concat": (None, ()),
        "qkv_group": (3, ("groups",)),
        "qzv_group": (2, ("groups",)),
        "qkv_heads": (1, ("heads",)),
        "transpose": (1, ()),
    }
