"""Rows of a vocabulary are left out or added as zeros, in the embedding and the head alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.formats.megatron.plan import make_plan
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.layout.tied_head import resolve_head
from distconv.models.parameters import Binding
from distconv.models.sizes import Sizes
from distconv.models.vocabulary import SIZE_NAME, padded_rows, resize_vocabulary, with_rows_of
from tests.unit import toy
from tests.unit.reference import evaluate

NAMES = ("model.embed.weight", "lm_head.weight")
OF_VOCABULARY = ["text.embedding.weight", "text.head.weight"]


def evaluated(binding: Binding) -> dict[str, np.ndarray]:
    source = toy.arrays()
    return {
        each.name: evaluate(each.recipe.tensor, [source[stored.name] for stored in each.sources])
        for each in binding.parameters
    }


@pytest.mark.parametrize(
    ("multiple", "rows"),
    [(1, toy.VOCABULARY), (toy.VOCABULARY, toy.VOCABULARY), (toy.VOCABULARY + 3, toy.VOCABULARY + 3), (64, 64)],
)
def test_rows_are_padded_to_a_multiple(multiple, rows):
    assert padded_rows(toy.bound(), multiple) == rows


def test_of_several_vocabularies_none_is_cut():
    parameters = toy.bound().parameters
    (larger,) = (
        each for each in resize_vocabulary(toy.bound(), toy.VOCABULARY + 1).parameters if each.name == OF_VOCABULARY[0]
    )
    others = (each for each in parameters if each.name != OF_VOCABULARY[0])
    both = replace(toy.bound(), parameters=(larger, *others))
    assert padded_rows(both, 1) == toy.VOCABULARY + 1


def test_without_a_vocabulary_nothing_is_padded():
    with pytest.raises(InputError, match="vocab_multiple: nothing that is converted has a vocabulary"):
        padded_rows(replace(toy.bound(), parameters=()), 8)


@pytest.mark.parametrize("rows", [1, 17, toy.VOCABULARY - 1, toy.VOCABULARY, toy.VOCABULARY + 1, 64])
def test_rows_beyond_are_left_out_and_new_ones_are_zeros(rows):
    before, after = evaluated(toy.bound()), evaluated(resize_vocabulary(toy.bound(), rows))
    assert list(after) == list(before)
    for name, array in after.items():
        expected = before[name]
        if name in OF_VOCABULARY:
            expected = np.concatenate([expected, np.zeros((64, toy.HIDDEN), np.int64)])[:rows]
        np.testing.assert_array_equal(array, expected)


def test_without_a_number_nothing_changes():
    binding = toy.bound()
    assert resize_vocabulary(binding, None) is binding


def test_a_model_whose_vocabulary_is_not_converted_has_none():
    binding = toy.bound(left_out=lambda rule: "no" if rule.modality == "text" else None)
    with pytest.raises(InputError, match="vocab_size=64: nothing that is converted has a vocabulary"):
        resize_vocabulary(binding, 64)


@pytest.mark.parametrize("rows", [17, 64])
def test_a_resized_vocabulary_is_planned_with_its_new_size(rows):
    """Also the copy of a tied model; and rows that are left out on purpose are not taken for lost ones."""
    shapes = toy.shapes()
    del shapes["lm_head.weight"]
    binding = resize_vocabulary(toy.bound(shapes, tie_word_embeddings=True), rows)
    layout = complete_layout(Layout(tp=2, stages={"text": ((1, 2),)}), binding, toy.definition())
    plan = make_plan(resolve_head(binding, toy.definition(), layout, "auto"), layout)
    found: dict[str, list[tuple[int, ...]]] = {}
    for file in plan.files:
        for entry in plan.entries(file):
            if entry.name in OF_VOCABULARY:
                found.setdefault(entry.name, []).append(entry.tensor.shape)
    shapes_of_shards = [((rows + 1) // 2, toy.HIDDEN), (rows // 2, toy.HIDDEN)]
    assert found == dict.fromkeys(OF_VOCABULARY, shapes_of_shards)


def test_a_new_size_that_does_not_divide_is_named():
    model = toy.content()
    for section, number in (("embedding", 0), ("head", 1)):
        model["rules"]["text"][section][number]["tp"] = "rows"
    binding = resize_vocabulary(toy.bound(model=model), 31)
    layout = complete_layout(Layout(tp=2), binding, toy.definition(model))
    with pytest.raises(InputError) as caught:
        make_plan(binding, layout)
    *problems, fitting = caught.value.problems
    assert len(problems) == 2
    for problem in problems:
        assert "vocab_size=31" in problem
    assert fitting == "layout.tp: sizes that fit all of this model: 1"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((toy.VOCABULARY, toy.VOCABULARY + 2), toy.VOCABULARY + 2),
        # What is cut is refused where it is bound.
        ((toy.VOCABULARY - 1, toy.VOCABULARY - 1), toy.VOCABULARY),
    ],
)
def test_a_vocabulary_is_as_large_as_its_largest_tensor_but_never_smaller_than_the_configuration_says(rows, expected):
    definition = toy.definition()
    known = Sizes(definition.sizes, toy.config(), "/hf/config.json")
    shapes = {name: (count, toy.HIDDEN) for name, count in zip(NAMES, rows, strict=True)}
    assert with_rows_of(shapes, definition, known).get(SIZE_NAME) == expected
