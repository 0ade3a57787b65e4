"""The head of a tied model, and packed experts as matrices, under published names in either spelling."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from distconv.errors import InputError
from distconv.formats.dcp.live_model import flattened, with_tied_head
from distconv.models.definition import Definition
from distconv.models.sizes import Sizes
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import whole
from tests.unit import toy
from tests.unit.reference import evaluate

HEAD, EMBEDDING = "lm_head.weight", "model.embed.weight"


def tensors(*left_out: str, spelling: str = "") -> list[NamedTensor]:
    """The toy's tensors, those of the language model in another spelling."""
    return [
        NamedTensor((stored,), whole(stored.dtype, stored.shape), name.replace("model.", f"model.{spelling}", 1))
        for name, stored in toy.index().tensors.items()
        if name not in left_out
    ]


def sizes(*, tied: bool, definition: Definition | None = None) -> Sizes:
    found = definition or toy.definition()
    return Sizes(found.sizes, toy.config(tie_word_embeddings=tied), "/hf/config.json")


@pytest.mark.parametrize(("stored", "spelling"), list(product([False, True], ["", "language_model."])))
def test_the_head_of_a_tied_model_is_what_is_asked_for(stored, spelling):
    given = tensors(*([] if stored else [HEAD]), spelling=spelling)
    names = [each.name for each in given]

    def with_head(tied_head: str) -> tuple[list[NamedTensor], list[tuple[str, str]]]:
        found, left_out = with_tied_head(given, toy.definition(), sizes(tied=True), tied_head)
        return list(found), [(each.tensor.name, each.reason) for each in left_out]

    assert with_head("auto") == (given, [])

    found, left_out = with_head("write")
    assert sorted(each.name for each in found) == sorted({*names, HEAD})
    by_name = {each.name: each for each in found}
    head, embedding = by_name[HEAD], by_name[f"model.{spelling}embed.weight"]
    assert head.sources[0].name == (HEAD if stored else EMBEDDING)
    assert (head.tensor is embedding.tensor) == (not stored)
    assert left_out == []

    found, left_out = with_head("omit")
    assert [each.name for each in found] == [name for name in names if name != HEAD]
    assert left_out == ([(HEAD, "tied_head=omit")] if stored else [])


def test_a_head_without_an_embedding_to_copy_is_refused():
    with pytest.raises(InputError, match=f"source tensor {EMBEDDING} is missing: the head is a copy of it"):
        with_tied_head(tensors(EMBEDDING), toy.definition(), sizes(tied=True), "write")


def untied() -> Definition:
    content = toy.content()
    del content["tied"]
    return toy.definition(content)


@pytest.mark.parametrize("tied_head", ["write", "omit"])
@pytest.mark.parametrize("case", ["says it is not", "has no head to tie", "not known", "no configuration"])
def test_a_head_that_is_not_known_to_be_tied_is_not_touched(case, tied_head):
    definition, found = {
        "says it is not": (toy.definition(), sizes(tied=False)),
        "has no head to tie": (untied(), sizes(tied=True, definition=untied())),
        "not known": (None, None),
        "no configuration": (toy.definition(), None),
    }[case]
    with pytest.raises(InputError, match=f"tied_head={tied_head}: this model's head is not known to be tied"):
        with_tied_head(tensors(), definition, found, tied_head)
    assert with_tied_head(given := tensors(), definition, found, "auto") == (given, ())


@pytest.mark.parametrize("spelling", ["", "language_model."])
def test_packed_experts_become_matrices_and_nothing_else_changes(spelling):
    arrays = toy.arrays()
    given = tensors(spelling=spelling)
    found = flattened(given, toy.definition())
    changed = set()
    for before, after in zip(given, found, strict=True):
        array = arrays[before.sources[0].name]
        if after != before:
            changed.add(after.name)
            array = array.reshape(toy.EXPERTS * toy.FFN, toy.HIDDEN)
        assert (after.name, after.sources) == (before.name, before.sources)
        np.testing.assert_array_equal(evaluate(after.tensor, [arrays[before.sources[0].name]]), array)
    assert changed == {f"model.{spelling}layers.{layer}.experts.down" for layer in range(1, toy.LAYERS)}


def test_layers_that_look_alike_share_a_table():
    table = whole("bfloat16", (toy.EXPERTS, toy.FFN, toy.HIDDEN))
    given = [NamedTensor((), table, f"model.layers.{layer}.experts.down") for layer in (1, 2)]
    one, two = flattened(given, toy.definition())
    assert one.tensor is two.tensor


def test_without_a_definition_nothing_is_known_to_be_packed():
    given = tensors()
    assert flattened(given, None) is given
