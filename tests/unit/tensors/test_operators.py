"""Each operator means what its sentence says, in numpy's reshape and stack, and its inverse restores the sources."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import distconv
from distconv.tensors.operators import OPERATORS, RowsUnknownError
from distconv.tensors.tiling import gaps
from distconv.tensors.virtual import VirtualTensor, invert, whole
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


@given(SIZES, TAILS)
def test_in_turn_is_all_even_rows_then_all_odd_ones(rows, tail):
    found, (source,) = apply("in_turn", [(2 * rows, *tail)])
    np.testing.assert_array_equal(found, np.concatenate([source[0::2], source[1::2]]))


@given(SIZES, SIZES)
def test_transpose_in_turn_is_all_even_columns_then_all_odd_ones(rows, columns):
    found, (source,) = apply("transpose_in_turn", [(rows, 2 * columns)])
    np.testing.assert_array_equal(found, np.concatenate([source.T[0::2], source.T[1::2]]))


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
        ("in_turn", [(3, 2)], (), "3 rows do not alternate between two"),
        ("transpose_in_turn", [(2, 3)], (), "3 rows do not alternate between two"),
        ("qkv_heads", [(8, 2)], (2,), r"shape \[8, 2\] does not divide into 3"),
        ("qkv_heads", [(12, 2)], (3,), r"shape \[4, 2\] does not divide into 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, shapes, sizes, message):
    tensors, _ = operands(shapes)
    with pytest.raises(ValueError, match=message):
        OPERATORS[name].apply(*tensors, *sizes)


@st.composite
def made(draw: st.DrawFn) -> tuple[str, list[int], list[int], int, int]:
    """An operator, the rows of its sources, its sizes, the number of heads, and the rows of what it makes."""
    groups, width, per_group = draw(SIZES), draw(SIZES), draw(SIZES)
    heads = groups * per_group
    name = draw(st.sampled_from(sorted(OPERATORS)))
    if name == "concat":
        rows, sizes = draw(st.lists(SIZES, min_size=2, max_size=4)), []
    elif OPERATORS[name].sizes == ("groups",):
        rows, sizes = [heads * width, groups * width, groups * width][: OPERATORS[name].sources], [groups]
    else:
        rows, sizes = [6 * heads * width], [heads] * len(OPERATORS[name].sizes)
    shapes = [(each, 2) for each in rows]
    tensor = OPERATORS[name].apply(*operands(shapes)[0], *sizes)
    return name, rows, sizes, heads, tensor.shape[1 if OPERATORS[name].transposes else 0]


@given(made(), st.data())
def test_the_rows_of_sources_come_back_or_are_refused(program, data):
    """Whatever is known of them; all that is needed, where nothing is, are the heads of q."""
    name, rows, sizes, heads, total = program
    known = [each if data.draw(st.booleans()) else None for each in rows]
    heads_known = data.draw(st.booleans())
    try:
        found = OPERATORS[name].source_rows(total, known, sizes, lambda: heads if heads_known else None)
    except RowsUnknownError:
        assert known.count(None) > 1
        assert name == "concat" or not (heads_known or any(known))
    else:
        assert list(found) == rows


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.sources != 1])
def test_rows_of_sources_that_contradict_those_of_the_parameter_are_refused(name):
    operator = OPERATORS[name]
    known = [4] * (operator.sources or 2)
    with pytest.raises(ValueError, match="rows do not make 100 rows"):
        operator.source_rows(100, known, [2] * len(operator.sizes), lambda: None)


@pytest.mark.parametrize(
    ("name", "known", "rows"),
    [
        ("concat", [4, None], 4),
        ("concat", [4, 2, None], 5),
        ("qkv_group", [None, 2, None], 4),
        ("qzv_group", [4, None], 4),
    ],
)
def test_a_source_for_which_no_rows_are_left_is_refused(name, known, rows):
    operator = OPERATORS[name]
    with pytest.raises(ValueError, match=f"rows do not make {rows} rows"):
        operator.source_rows(rows, known, [2] * len(operator.sizes), lambda: None)


@given(SIZES, st.sampled_from([name for name, operator in OPERATORS.items() if operator.sources == 1]))
def test_properties_of_operators_of_one_source_are_what_they_do(size, name):
    operator = OPERATORS[name]
    shape = (6 * size, 4)
    (tensor,), (array,) = operands([shape])
    found = evaluate(operator.apply(tensor, *[2 * size] * len(operator.sizes)), [array])
    assert operator.is_identity == np.array_equal(found, array)
    assert (found.shape == shape[::-1]) == operator.transposes
    assert operator.is_by_head == (found.shape == shape and not operator.is_identity and name != "in_turn")
    assert not operator.is_sequence


@pytest.mark.parametrize("name", ["concat", "qkv_group"])
def test_sources_of_two_element_types_are_refused(name):
    tensors = [whole("float32", (4, 2)), whole("float32", (4, 2), 1), whole("bfloat16", (4, 2), 2)]
    with pytest.raises(ValueError, match="cannot concatenate bfloat16 with float32"):
        OPERATORS[name].apply(*tensors, *([2] if name == "qkv_group" else []))


def test_no_other_module_knows_an_operator_by_its_name():
    package = Path(distconv.__file__).parent
    named = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in OPERATORS
    }
    assert named == {"tensors/operators.py"}


def test_the_registry_says_how_each_operator_is_called():
    assert {name: (operator.sources, operator.sizes) for name, operator in OPERATORS.items()} == {
        "rename": (1, ()),
        "concat": (None, ()),
        "qkv_group": (3, ("groups",)),
        "qzv_group": (2, ("groups",)),
        "qkv_heads": (1, ("heads",)),
        "transpose": (1, ()),
        "in_turn": (1, ()),
        "transpose_in_turn": (1, ()),
    }
