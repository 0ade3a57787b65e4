"""Composition means what numpy means by it."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.compose import (
    box_of,
    contiguous_blocks,
    merge_dims,
    renumbered,
    split_dim,
    strided,
    substitute,
    unstack,
)
from distconv.tensors.virtual import concat, invert, narrow, whole, zeros
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


def test_dims_of_a_tensor_of_two_halves_are_merged():
    halves = concat([whole("int64", (2, 3)), renumbered(whole("int64", (2, 3)), 1)], 1)
    arrays = [numbered((2, 3)), 100 + numbered((2, 3))]
    expected = np.concatenate(arrays, 1).reshape(12)
    np.testing.assert_array_equal(evaluate(merge_dims(halves, 0), arrays), expected)


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


@pytest.mark.parametrize(("shape", "strides"), [((0, 3), (3, 1)), ((3, 0), (1, 1)), ((2, 0, 4), (4, 4, 1))])
def test_a_view_without_elements_has_no_copies(shape, strides):
    assert strided("int64", shape, strides)[1] == zeros("int64", shape)


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


@given(programs(), st.data())
def test_unstacking_is_indexing(program: Program, data: st.DataObject):
    for value in program.values:
        dims = data.draw(st.integers(0, value.array.ndim))
        found = unstack(value.tensor, dims)
        assert list(found) == list(np.ndindex(value.array.shape[:dims]))
        for position, tensor in found.items():
            array = evaluate(tensor, program.operands, np.dtype(int))
            np.testing.assert_array_equal(array, value.array[position])


def test_more_dims_than_there_are_cannot_be_unstacked():
    with pytest.raises(ValueError, match="has no 2 dims"):
        unstack(whole("int64", (3,)), 2)


@given(programs(), st.data())
def test_a_box_is_a_slice(program: Program, data: st.DataObject):
    for value in program.values:
        limits = [sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2))) for length in value.array.shape]
        box = box_of(value.tensor, tuple(low for low, _ in limits), tuple(high - low for low, high in limits))
        expected = value.array[tuple(slice(low, high) for low, high in limits)]
        assert box.shape == expected.shape
        np.testing.assert_array_equal(evaluate(box, program.operands), expected)


@pytest.mark.parametrize(("start", "lengths"), [((0, 0), (2, 4)), ((1, 0), (2, 3)), ((0, -1), (2, 3))])
def test_a_box_that_leaves_the_tensor_is_refused(start, lengths):
    with pytest.raises(ValueError, match="leaves dim"):
        box_of(whole("uint8", (2, 3)), start, lengths)


@given(shapes(), st.integers(1, 60))
def test_contiguous_blocks_tile_the_shape_in_order(shape, elements):
    array = numbered(shape, first=0)
    offset = 0
    for start, lengths in contiguous_blocks(shape, elements):
        assert prod(lengths) <= elements
        block = array[tuple(slice(low, low + length) for low, length in zip(start, lengths, strict=True))]
        np.testing.assert_array_equal(block.ravel(), np.arange(offset, offset + prod(lengths)))
        offset += prod(lengths)
    assert offset == array.size


@given(shapes(min_rank=1), st.integers(1, 60))
def test_contiguous_blocks_are_as_large_as_they_may_be(shape, elements):
    """Where two neighbours together are a contiguous box, they are too large for one block."""
    for (start, lengths), (following, others) in pairwise(contiguous_blocks(shape, elements)):
        differing = [dim for dim in range(len(shape)) if start[dim] != following[dim]]
        (dim, *more) = differing
        if not more and lengths[dim + 1 :] == shape[dim + 1 :]:
            assert prod(lengths) + prod(others) > elements


def test_an_empty_shape_has_no_blocks_and_a_scalar_has_one():
    assert list(contiguous_blocks((3, 0), 10)) == []
    assert list(contiguous_blocks((), 10)) == [((), ())]
