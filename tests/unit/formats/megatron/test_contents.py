"""Numbers local to a rank file become those of the model, and pieces add up to whole shapes."""

from __future__ import annotations

import pytest

from distconv.formats.megatron.contents import Contents, contents_of
from distconv.formats.megatron.names import Targets
from distconv.formats.megatron.ranks import arrange
from distconv.layout.layout import CompleteLayout
from distconv.layout.request import SourceLayout
from tests.unit import toy
from tests.unit.toy_megatron import layout, source


def contents(found: CompleteLayout) -> Contents:
    index, targets = source(found).index(), Targets(toy.definition().rules)
    given = SourceLayout(pp=found.pp, ep=found.ep)
    return contents_of(index, arrange(index, targets, toy.EXPERTS, given), found, targets, toy.EXPERTS)


@pytest.mark.parametrize(
    "found",
    [
        layout(),
        layout(ep=2),
        layout(ep=4, tp=2),
        layout(((1, 0, 2),), ep=2),
        layout(((1, 0), (0, 2)), ((1, 0), (1, 0))),
    ],
)
def test_every_parameter_of_the_model_is_found_under_its_own_numbers(found):
    parameters = {each.key: each for each in toy.bound().parameters}
    held = contents(found)
    assert held.pieces.keys() == parameters.keys()
    for key, parameter in parameters.items():
        rule = parameter.recipe.rule
        assert held.full_shape(rule, key, found.tensor_parallel_size(rule.modality)) == parameter.recipe.tensor.shape


def test_pieces_of_different_sizes_add_up():
    """30 rows of the vocabulary on four ranks."""
    (embedding,) = (each for each in toy.bound().parameters if each.name == "text.embedding.weight")
    held = contents(layout(tp=4))
    assert [piece.shape[0] for piece in held.pieces[embedding.key].values()] == [8, 8, 7, 7]
    assert held.full_shape(embedding.recipe.rule, embedding.key, 4) == (toy.VOCABULARY, toy.HIDDEN)
