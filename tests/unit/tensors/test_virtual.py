"""The algebra means what numpy means, inverts exactly, and refuses what it cannot say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.tiling import gaps
from distconv.tensors.virtual import (
    Copy,
    VirtualTensor,
    chunk,
    concat,
    invert,
    narrow,
    permute,
    remainder,
    reordered,
    select,
    split,
    whole,
    zeros,
)
from tests.unit.programs import Program, numbered, programs, shapes
from tests.unit.reference import box, evaluate


@given(programs())
def test_a_program_stands_for_what_numpy_makes_of_it(program: Program):
    for value in program.values:
        assert value.tensor.shape == value.array.shape
        assert value.tensor.elements == value.array.size
        assert value.tensor.dtype == program.dtype
        np.testing.assert_array_equal(evaluate(value.tensor, program.operands), value.array)


@given(shapes(min_rank=1), st.data())
def test_reordered_is_indexing_with_the_inverse(shape, data):
    dim = data.draw(st.integers(0, len(shape) - 1))
    places = data.draw(st.permutations(range(shape[dim])))
    array = numbered(shape)
    tensor = reordered(permute(whole("int64", shape[::-1]), tuple(reversed(range(len(shape))))), dim, places)
    assert tensor.shape == shape
    expected = np.take(array, np.argsort(places), axis=dim)
    np.testing.assert_array_equal(evaluate(tensor, [array.T]), expected)
    assert gaps(tensor) == 0


@pytest.mark.parametrize("places", [[0], [0, 0], [1, 2], [0, 1, 2]])
def test_places_that_are_no_permutation_are_refused(places):
    with pytest.raises(ValueError, match="no permutation"):
        reordered(whole("int8", (2, 3)), 0, places)


@given(programs())
def test_gaps_counts_the_elements_without_a_source(program: Program):
    for value in program.values:
        assert gaps(value.tensor) == np.count_nonzero(value.array == 0)


@given(programs())
def test_the_inverse_restores_every_element_that_some_tensor_holds(program: Program):
    described = [(program.dtype, operand.shape) for operand in program.operands]

    restored = invert(program.tensors, described)

    held = np.concatenate([np.ravel(value.array) for value in program.values])
    arrays = [value.array for value in program.values]
    for back, operand in zip(restored, program.operands, strict=True):
        expected = np.where(np.isin(operand, held), operand, 0)
        assert (back.dtype, back.shape) == (program.dtype, operand.shape)
        np.testing.assert_array_equal(evaluate(back, arrays), expected)
        # An element held several times has one source all the same: `gaps` would refuse two.
        assert gaps(back) == np.count_nonzero(expected == 0)


@given(shapes(min_rank=1), st.data())
def test_shards_of_one_layout_can_be_cut_as_another(shape, data):
    """Re-splitting A → B is the inverse of A, followed by B."""
    array = numbered(shape)
    tensor = whole("bfloat16", shape)
    (one, a_lengths), (other, b_lengths) = (data.draw(_cuts(shape)) for _ in range(2))
    stored = [evaluate(shard, [array]) for shard in split(tensor, a_lengths, one)]

    (joined,) = invert(split(tensor, a_lengths, one), [("bfloat16", shape)])

    for found, expected in zip(split(joined, b_lengths, other), split(tensor, b_lengths, other), strict=True):
        np.testing.assert_array_equal(evaluate(found, stored, array.dtype), evaluate(expected, [array]))


@st.composite
def _cuts(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, list[int]]:
    """A dim and lengths that add up to its length."""
    dim = draw(st.integers(0, len(shape) - 1))
    cuts = sorted(draw(st.lists(st.integers(0, shape[dim]), max_size=3)))
    return dim, np.diff([0, *cuts, shape[dim]]).tolist()


def test_whole_is_the_operand_of_that_number():
    np.testing.assert_array_equal(
        evaluate(whole("int8", [2, 3], 1), [numbered(()), numbered((2, 3))]), numbered((2, 3))
    )


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_what_is_empty_has_no_copies(shape):
    assert whole("uint8", shape).copies == ()


def test_zeros_has_no_source():
    assert zeros("int8", [2, 3]) == VirtualTensor("int8", (2, 3), ())
    assert gaps(zeros("int8", [2, 3])) == 6


def test_of_replicated_tensors_the_first_is_the_source():
    tensor = whole("float32", (4,))
    (back,) = invert([narrow(tensor, 0, 1, 2), tensor], [("float32", (4,))])
    np.testing.assert_array_equal(
        evaluate(back, [np.array([10, 20]), np.array([-1, -2, -3, -4])]), np.array([-1, 10, 20, -4])
    )


def test_experts_of_a_stack_go_back_to_it_in_their_place_and_orientation():
    stack = numbered((3, 2, 4))
    experts = [permute(select(whole("float32", (3, 2, 4)), 0, expert), (1, 0)) for expert in range(3)]
    arrays = [evaluate(expert, [stack]) for expert in experts]
    for expert, array in enumerate(arrays):
        np.testing.assert_array_equal(array, stack[expert].T)

    (back,) = invert(experts, [("float32", (3, 2, 4))])

    np.testing.assert_array_equal(evaluate(back, arrays), stack)


def test_padding_is_not_in_the_inverse():
    padded = concat([whole("float32", (3, 2)), zeros("float32", (2, 2))])
    (back,) = invert([padded], [("float32", (3, 2))])
    array = numbered((5, 2))
    np.testing.assert_array_equal(evaluate(back, [array]), array[:3])


def test_an_operand_that_no_tensor_holds_is_all_gap():
    (back,) = invert([], [("float32", (3, 2))])
    assert gaps(back) == 6


@st.composite
def _boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Copy:
    """A copy that writes a random box of a shape, from an operand of the same shape with the dims in another order."""
    start = tuple(draw(st.integers(0, length - 1)) for length in shape)
    lengths = tuple(draw(st.integers(1, length - low)) for low, length in zip(start, shape, strict=True))
    order = tuple(draw(st.permutations(range(len(shape)))))
    source_start = [0] * len(shape)
    for dim, source_dim in enumerate(order):
        source_start[source_dim] = start[dim]
    return Copy(0, tuple(source_start), start, lengths, order)


def _written(copies: list[Copy], shape: tuple[int, ...]) -> np.ndarray:
    """How often each element is written."""
    counts = np.zeros(shape, np.int64)
    for copy in copies:
        counts[box(copy.target_start, copy.shape, shape)] += 1
    return counts


@given(shapes(), st.data())
def test_gaps_refuses_two_sources_of_one_element(shape, data):
    copies = data.draw(st.lists(_boxes(shape), max_size=5))
    counts = _written(copies, shape)
    tensor = VirtualTensor("float32", shape, tuple(copies))
    if counts.max() > 1:
        with pytest.raises(ValueError, match="two sources for the box at"):
            gaps(tensor)
    else:
        assert gaps(tensor) == np.count_nonzero(counts == 0)


@given(shapes(), st.data())
def test_the_remainder_of_a_copy_is_what_the_others_do_not_write(shape, data):
    copy, *taken = data.draw(st.lists(_boxes(shape), min_size=1, max_size=5))

    left = remainder(copy, taken)

    expected = (_written([copy], shape) > 0) & (_written(taken, shape) == 0)
    np.testing.assert_array_equal(_written(left, shape), expected.astype(np.int64))
    operand = numbered([max(shape, default=1)] * len(shape))
    copied = evaluate(VirtualTensor("float32", shape, (copy,)), [operand])
    remaining = evaluate(VirtualTensor("float32", shape, tuple(left)), [operand])
    np.testing.assert_array_equal(remaining, np.where(expected, copied, 0))


def test_the_source_shape_of_a_copy_is_in_the_dims_of_the_operand():
    assert Copy(0, (0, 0, 7), (0, 0, 0), (2, 1, 5), (1, None, 0)).source_shape == (5, 2, 1)


_MATRIX = whole("float32", (6, 4))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: concat([]), "nothing to concatenate"),
        (lambda: concat([_MATRIX, whole("bfloat16", (6, 4))]), "cannot concatenate bfloat16 with float32"),
        (lambda: concat([_MATRIX, whole("float32", (6, 5))]), r"shapes \[6, 4\] and \[6, 5\] along dim 0"),
        (lambda: concat([_MATRIX, whole("float32", (5, 4))], 1), r"shapes \[6, 4\] and \[5, 4\] along dim 1"),
        (lambda: concat([_MATRIX, whole("float32", (6, 4, 1))]), r"shapes \[6, 4\] and \[6, 4, 1\]"),
        (lambda: narrow(_MATRIX, 0, 5, 2), r"range 5:7 leaves dim 0 of shape \[6, 4\]"),
        (lambda: narrow(_MATRIX, 1, -1, 2), "range -1:1 leaves dim 1"),
        (lambda: narrow(_MATRIX, 1, 2, -1), "range 2:1 leaves dim 1"),
        (lambda: split(_MATRIX, [3, 2]), r"pieces \[3, 2\] do not add up to dim 0 of shape \[6, 4\]"),
        (lambda: split(_MATRIX, [3, 3], 1), r"pieces \[3, 3\] do not add up to dim 1"),
        (lambda: split(_MATRIX, [-1, 7]), "leaves dim 0"),
        (lambda: chunk(_MATRIX, 4), r"dim 0 of shape \[6, 4\] does not divide into 4 equal pieces"),
        (lambda: chunk(_MATRIX, 3, 1), "dim 1 of shape .* does not divide into 3"),
        (lambda: chunk(_MATRIX, 8, 1), "does not divide into 8"),
        (lambda: select(_MATRIX, 0, 6), "range 6:7 leaves dim 0"),
        (lambda: select(_MATRIX, 1, -1), "range -1:0 leaves dim 1"),
        (lambda: permute(_MATRIX, (0, 0)), r"\[0, 0\] is not an order of the dims of shape \[6, 4\]"),
        (lambda: permute(_MATRIX, (0,)), "is not an order"),
        (lambda: permute(_MATRIX, (1, 2)), "is not an order"),
    ],
)
def test_what_cannot_be_said_is_refused_with_both_sides(operation, message):
    with pytest.raises(ValueError, match=message):
        operation()


@pytest.mark.parametrize(
    "operation",
    [
        lambda: concat([whole("float32", ()), whole("float32", (), 1)]),
        lambda: chunk(whole("float32", ()), 2),
        lambda: narrow(_MATRIX, 2, 0, 1),
        lambda: select(_MATRIX, 2, 0),
    ],
)
def test_a_dim_that_the_tensor_does_not_have_is_refused(operation):
    """A model definition can ask for it: a scalar with the tp rule rows."""
    with pytest.raises(ValueError, match="dim"):
        operation()


def test_gaps_of_boxes_that_no_plane_parts():
    """Four boxes around one, none of which another one overlaps: they only touch."""
    boxes = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    copies = [Copy(number, (0, 0), start, shape, (0, 1)) for number, (start, shape) in enumerate(boxes)]
    assert gaps(VirtualTensor("int8", (3, 3), tuple(copies))) == 0
    assert gaps(VirtualTensor("int8", (3, 3), tuple(copies[:4]))) == 1
    longer = replace(copies[0], shape=(2, 2))
    with pytest.raises(ValueError, match="two sources for the box at"):
        gaps(VirtualTensor("int8", (3, 3), (longer, *copies[1:])))


def test_gaps_refuses_a_box_within_one_that_began_before_others():
    boxes = [((0, 0), (4, 1)), ((0, 1), (1, 1)), ((2, 0), (1, 1))]
    copies = [Copy(number, (0, 0), start, shape, (0, 1)) for number, (start, shape) in enumerate(boxes)]
    with pytest.raises(ValueError, match="two sources for the box at"):
        gaps(VirtualTensor("int8", (4, 2), tuple(copies)))
