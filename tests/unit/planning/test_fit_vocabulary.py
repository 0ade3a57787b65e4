"""The rows of the vocabulary in what is published: those of the reference, of training, or as asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.formats.base import Published
from distconv.planning.facts import model_of
from distconv.planning.fit_vocabulary import Fitted, fit_vocabulary
from distconv.tensors.stored import as_stored
from tests import configuration
from tests.unit import toy, toy_facts
from tests.unit.reference import evaluate

NAMES = ("model.embed.weight", "lm_head.weight")
ROWS = toy.VOCABULARY


def published(*, bound: bool = False, **rows: int) -> Published:
    """The toy model, with other numbers of rows in some tensors, named without dots."""
    shapes = toy.shapes()
    shapes |= {name: (count, shapes[name][1]) for name in NAMES for key, count in rows.items() if key in name}
    return Published(tensors=tuple(as_stored(toy.index(shapes).tensors.values())), bound=bound)


def fitted(
    found: Published,
    *,
    says: int = ROWS,
    trained: bool = False,
    own: bool = False,
    name: str | None = "toy",
    **given: Any,
) -> Fitted:
    """Of a model whose configuration `says` a number of rows; `own`: it is that of the source."""
    reference = None if own else toy_facts.reference(vocab_size=says)
    model = model_of(name, toy.content(), reference, toy.config(vocab_size=says), "/hf", {})
    return fit_vocabulary(found, configuration.job(**given), replace(model, trained_rows=trained))


def rows_of(found: Fitted) -> tuple[list[int], int | None]:
    tensors = {each.name: each.tensor.shape[0] for each in found.published.tensors}
    return [tensors[name] for name in NAMES if name in tensors], found.published.rows


@pytest.mark.parametrize("own", [False, True])
def test_what_has_the_rows_of_its_configuration_stays_as_it_is(own):
    known = published()
    found = fitted(known, own=own)
    assert found.published == known
    assert (found.notes, found.padding) == ((), ())


@pytest.mark.parametrize("says", [1, ROWS - 2])
def test_rows_beyond_are_left_out_if_they_are_equal_and_kept_if_parameters_were_trained(says):
    found = fitted(published(), says=says)
    assert rows_of(found) == ([says, says], None)
    beyond = f"{', '.join(NAMES)}: {ROWS - says} rows beyond the {says} of reference=/hf: "
    assert found.notes == (f"{beyond}left out as padding, being zeros or all equal; vocab_size={ROWS} keeps them",)
    assert {each.copy.sources[0].name for each in found.padding} == set(NAMES)
    kept = fitted(published(bound=True), says=says, trained=True)
    assert rows_of(kept) == ([ROWS, ROWS], ROWS)
    assert kept.padding == ()
    why = f"kept as trained, being neither zeros nor all equal, so vocab_size is {ROWS}"
    assert kept.notes == (f"{beyond}{why}; vocab_size={says} leaves them out",)


@pytest.mark.parametrize("says", [1, ROWS - 2])
def test_trained_rows_beyond_a_configuration_are_a_contradiction_under_published_names(says):
    with pytest.raises(InputError) as caught:
        fitted(published(), says=says, trained=True)
    expected = (
        f"{', '.join(NAMES)}: {ROWS - says} rows beyond the {says} of reference=/hf: trained, being neither zeros nor "
        f"all equal; is it the model that training began with? vocab_size={ROWS} publishes what is there, "
        f"vocab_size={says} leaves them out"
    )
    assert caught.value.problems == [expected]
    for wanted in (says, ROWS):
        assert rows_of(fitted(published(), says=says, trained=True, vocab_size=wanted))[0] == [wanted, wanted]


def test_what_is_compared_is_what_is_left_out():
    found = fitted(published(), says=ROWS - 3)
    arrays = toy.arrays()
    for name in NAMES:
        parts = [each for each in found.padding if each.copy.sources[0].name == name]
        rows = np.concatenate([evaluate(each.copy.tensor, [arrays[name]]) for each in parts])
        np.testing.assert_array_equal(rows, arrays[name][ROWS - 2 :])
        for each in parts:
            original = evaluate(each.original.tensor, [arrays[name]])
            np.testing.assert_array_equal(original, np.stack([arrays[name][ROWS - 3]] * len(original)))


def test_one_row_beyond_is_said_as_one():
    assert "1 row beyond" in fitted(published(), says=ROWS - 1).notes[0]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("wanted", [1, ROWS, ROWS + 5])
def test_the_option_decides_alone(wanted, own):
    found = fitted(published(), says=ROWS, own=own, vocab_size=wanted)
    assert rows_of(found) == ([wanted, wanted], None if wanted == ROWS else wanted)
    assert found.padding == ()
    named = ", ".join(NAMES)
    expected = {
        1: (f"vocab_size=1: the last {ROWS - 1} rows of {named} left out",),
        ROWS: (),
        ROWS + 5: (f"vocab_size={ROWS + 5}: 5 rows of zeros added to {named}",),
    }
    assert found.notes == expected[wanted]


def test_the_option_cuts_what_was_trained_and_keeps_what_is_less():
    assert rows_of(fitted(published(), says=20, vocab_size=20)) == ([20, 20], None)
    assert rows_of(fitted(published(), says=ROWS + 1, vocab_size=ROWS)) == ([ROWS, ROWS], ROWS)


def test_less_than_the_reference_is_refused():
    with pytest.raises(InputError) as caught:
        fitted(published(lm_head=ROWS), says=ROWS + 1)
    assert sorted(caught.value.problems) == sorted(
        f"{name}: the source has {ROWS} rows of the vocabulary, reference=/hf says {ROWS + 1}; is it the model that "
        f"training began with? vocab_size={ROWS} publishes what is there"
        for name in NAMES
    )


def test_each_of_embedding_and_head_can_be_the_one_that_was_trained():
    found = fitted(published(lm_head=ROWS + 2))
    assert rows_of(found) == ([ROWS, ROWS], None)
    assert found.notes[0].startswith("lm_head.weight: 2 rows beyond")
    assert {each.copy.sources[0].name for each in found.padding} == {"lm_head.weight"}


def test_what_a_configuration_of_its_own_contradicts_is_left_to_the_binding():
    known = published(lm_head=ROWS + 2)
    assert fitted(known, own=True).published == known


@pytest.mark.parametrize("name", [None, "toy"])
def test_what_has_no_vocabulary_has_none_to_change(name):
    found = published()
    if name is not None:
        found = replace(found, tensors=tuple(each for each in found.tensors if each.name not in NAMES))
    assert fitted(found, name=name).published == found
    with pytest.raises(InputError, match="vocab_size=8: nothing that is converted has a vocabulary"):
        fitted(found, name=name, vocab_size=8)
