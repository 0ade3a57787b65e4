"""Forms of packed experts: what each means in numpy, and the way from any of them to any other and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.models.packing import ExpertSizes, Form, Packing, Part, form_words, parts_of, rearranged, sizes_of
from tests.unit.reference import evaluate

FLAGS = st.booleans()
PACKED = st.builds(Packing, transposed=FLAGS, joined=FLAGS, flattened=FLAGS)
FORMS = st.none() | PACKED
SIZES = st.builds(ExpertSizes, experts=st.integers(1, 4), hidden=st.integers(1, 6), width=st.integers(1, 5))


def held(form: Form, sizes: ExpertSizes) -> dict[Part, np.ndarray]:
    """The tensors of a form, written out; each element says what it is of."""
    count, hidden, width = sizes.experts, sizes.hidden, sizes.width
    gate = np.arange(count * width * hidden).reshape(count, width, hidden)
    up, down = gate + 1000, gate.transpose(0, 2, 1) + 2000
    if form is None:
        found: dict[Part, np.ndarray] = {}
        for expert in range(count):
            found |= {(expert, "gate"): gate[expert], (expert, "up"): up[expert], (expert, "down"): down[expert]}
        return found
    found = (
        {(None, "gate_up"): np.concatenate([gate, up], 1)} if form.joined else {(None, "gate"): gate, (None, "up"): up}
    )
    found[None, "down"] = down
    if form.transposed:
        found = {part: array.transpose(0, 2, 1) for part, array in found.items()}
    if form.flattened:
        found = {part: array.reshape(-1, array.shape[2]) for part, array in found.items()}
    return found


@given(FORMS, SIZES)
def test_a_form_has_the_tensors_that_it_is_said_to_have(form, sizes):
    assert parts_of(form, sizes) == {part: array.shape for part, array in held(form, sizes).items()}
    assert list(parts_of(form, sizes)) == list(held(form, sizes))


@given(FORMS, FORMS, SIZES)
def test_any_form_becomes_any_other(source, wanted, sizes):
    arrays = list(held(source, sizes).values())
    found = {part: evaluate(table, arrays) for part, table in rearranged(source, wanted, sizes, "float32").items()}
    expected = held(wanted, sizes)
    assert list(found) == list(expected)
    for part, array in expected.items():
        np.testing.assert_array_equal(found[part], array)


@given(FORMS, FORMS, SIZES)
def test_packing_and_unpacking_is_the_identity(source, wanted, sizes):
    arrays = list(held(source, sizes).values())
    between = [evaluate(table, arrays) for table in rearranged(source, wanted, sizes, "float32").values()]
    back = [evaluate(table, between) for table in rearranged(wanted, source, sizes, "float32").values()]
    for one, other in zip(arrays, back, strict=True):
        np.testing.assert_array_equal(one, other)


@given(PACKED, SIZES)
def test_shapes_tell_the_sizes(form, sizes):
    assert sizes_of(form, parts_of(form, sizes)) == sizes


@given(SIZES, FLAGS)
def test_three_dims_of_both_tensors_tell_their_order_whatever_is_square(sizes, joined):
    """A hidden size of 2I makes gate and up square, one of I makes down: never both, where gate and up are joined."""
    shapes = parts_of(Packing(transposed=True, joined=joined), sizes)
    other = sizes_of(Packing(transposed=False, joined=joined), shapes)
    assert (other is None) == joined


def test_a_swap_of_dims_is_one_copy():
    found = rearranged(
        Packing(transposed=True), Packing(transposed=False), ExpertSizes(experts=64, hidden=8, width=4), "bfloat16"
    )
    assert [len(table.copies) for table in found.values()] == [1, 1]


@pytest.mark.parametrize("wanted", [None, Packing(transposed=True)])
def test_alternating_gate_and_up_are_not_put_in_another_order(wanted):
    alternating = Packing(transposed=True, alternating=True)
    with pytest.raises(ValueError, match="gate and up alternate in one of them"):
        rearranged(alternating, wanted, ExpertSizes(experts=2, hidden=3, width=4), "bfloat16")


def test_forms_in_words():
    words = {
        "one tensor each": None,
        "[E, h, 2I]": Packing(transposed=True),
        "[E*2I, h]": Packing(transposed=False, flattened=True),
        "[E, I, h]": Packing(transposed=False, joined=False),
        "[E, h, 2I], gate and up alternating": Packing(transposed=True, alternating=True),
    }
    assert {form_words(form): form for form in words.values()} == words
