"""Composition means what numpy means by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.compose import merge_dims, renumbered, split_dim, strided, substitute
from distconv.tensors.virtual import invert, narrow, whole, zeros
from tests.unit.programs import Program, numbered, programs, shapes
from tests.unit.reference import evaluate


@given(programs(), st.data())
def test_substituting_operands_is_evaluating_them_first(outer: Program, data: st.DataObject):
    """Each operand cut into two pieces along a dim, as shards hold it."""
    pieces, tables = [], []
    for operand in outer.operands:
        shape = operand.shape
        table = renumbered(whole(outer.dtype, shape), len(pieces))
        if shape:
            dim = data.draw(st.integers(0, len(shape) - 1))
            cut = data.draw(st.integers(0, shape[dim]))
            shards = [
                narrow(whole(outer.dtype, shape), dim, 0, cut),
                narrow(whole(outer.dtype, shape), dim, cut, shape[dim] - cut),
            ]
            (table,) = invert(shards, [(outer.dtype, shape)])
            table = renumbered(table, len(pieces))
            pieces += np.split(operand, [cut], dim)
        else:
            pieces.append(operand)
        tables.append(table)
    for value in outer.values:
        np.testing.assert_array_equal(evaluate(substitute(value.tensor, tables), pieces, np.dtype(int)), value.array)


@given(programs(), st.data())
def test_merging_dims_is_a_reshape_and_splitting_undoes_it(program: Program, data: st.DataObject):
    for value in program.values:
        shape = value.array.shape
        if len(shape) < 2:
            continue
        dim = data.draw(st.integers(0, len(shape) - 2))
        merged = merge_dims(value.tensor, dim)
        expected = value.array.reshape(*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :])
        assert merged.shape == expected.shape
        np.testing.assert_array_equal(evaluate(merged, program.operands), expected)
        if shape[dim]:
            split = split_dim(merged, dim, shape[dim])
            assert split.shape == shape
            np.testing.assert_array_equal(evaluate(split, program.operands), value.array)


@given(shapes(), st.data())
def test_a_view_of_storage_is_a_box_of_a_tensor(shape, data):
    """Slices and permutations of a contiguous tensor, as torch makes views."""
    array = numbered(shape)
    for dim, length in enumerate(shape):
        low = data.draw(st.integers(0, length - 1))
        high = data.draw(st.integers(low + 1, length))
        step = data.draw(st.integers(1, 3))
        if length % step:
            step = 1
        array = array[(slice(None),) * dim + (slice(low, high, step),)]
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    strides = [stride // array.itemsize for stride in array.strides]

    base, table = strided("int64", array.shape, strides)

    first = array.reshape(-1)[0] - 1
    storage = np.arange(first + 1, first + 1 + max(int(np.prod(base)), 1), dtype=np.int64).reshape(base)
    assert table.shape == array.shape
    np.testing.assert_array_equal(evaluate(table, [storage]), array)


@pytest.mark.parametrize(("shape", "strides"), [((3, 2), (0, 1)), ((3, 2), (1, 1)), ((2, 2), (3, 2))])
def test_a_view_whose_elements_overlap_or_do_not_line_up_is_refused(shape, strides):
    with pytest.raises(ValueError, match="is no box of a tensor"):
        strided("int64", shape, strides)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="is float16"):
        substitute(whole("float32", (2,)), [whole("float16", (2,))])
    with pytest.raises(ValueError, match="leaves dim 0"):
        substitute(whole("float32", (3,)), [zeros("float32", (2,))])
    with pytest.raises(ValueError, match="does not divide into 2"):
        split_dim(whole("float32", (3,)), 0, 2)
