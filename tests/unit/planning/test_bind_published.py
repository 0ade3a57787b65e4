"""What goes from published names to published names is bound: names, shapes and completeness, in every format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.base import Published
from distconv.formats.model import Model, Reference
from distconv.planning.bind_published import bind_published
from distconv.planning.facts import model_of
from distconv.tensors.stored import as_stored
from tests import configuration
from tests.unit import toy, toy_facts

Shapes = dict[str, tuple[int, ...]]
EMBEDDING, NORM, PACKED = "model.embed.weight", "model.final.weight", "experts"


def published(shapes: Mapping[str, tuple[int, ...]]) -> Published:
    return Published(tensors=tuple(as_stored(toy.index(dict(shapes)).tensors.values())))


def model(reference: Reference | None = None, *, name: str | None = "toy") -> Model:
    return model_of(name, toy.content(), reference, toy.config(), "/hf", {})


def bound(shapes: Mapping[str, tuple[int, ...]], known: Model | None = None, **options: Any) -> tuple[str, ...]:
    return bind_published(published(shapes), configuration.job(**options), known or model(), "/source")


def refused(shapes: Mapping[str, tuple[int, ...]], known: Model | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        bound(shapes, known, **options)
    return str(caught.value)


def test_a_model_as_its_definition_and_configuration_say_is_checked_whole():
    assert bound(toy.shapes()) == ()


def packed() -> str:
    return next(name for name in toy.shapes() if "experts" in name and len(toy.shapes()[name]) == 3)


DAMAGE: dict[str, tuple[Callable[[Shapes], Any], str]] = {
    "one is missing": (lambda shapes: shapes.pop(EMBEDDING), f"source tensor {EMBEDDING} is missing"),
    "one more": (lambda shapes: shapes.update({"model.odd.weight": (2,)}), "model.odd.weight"),
    "one of a layer more": (
        lambda shapes: shapes.update({name.replace(".2.", ".3."): shape for name, shape in dict(shapes).items()}),
        "not the number of layers or experts in config.json",
    ),
    "misshapen": (lambda shapes: shapes.update({EMBEDDING: (30, 15)}), f"{EMBEDDING} has shape [30, 15], expected"),
    "empty, as ZeRO-3 leaves it": (lambda shapes: shapes.update({EMBEDDING: (0,)}), f"{EMBEDDING} has shape [0]"),
    "transposed experts": (
        lambda shapes: shapes.update({packed(): tuple(shapes[packed()][dim] for dim in (0, 2, 1))}),
        "has shape",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reference", [None, toy_facts.reference()])
def test_what_a_definition_knows_better_is_refused(damage, reference):
    shapes = toy.shapes()
    change, says = DAMAGE[damage]
    change(shapes)
    assert says in refused(shapes, model(reference))


def test_a_tensor_in_two_spellings_is_refused_with_both():
    """A source that spells names as the definition does may give one name twice, and a result would have either."""
    stored = list(as_stored(toy.index().tensors.values()))
    (other,) = as_stored([replace(toy.index().tensors[EMBEDDING], name=f"model.language_{EMBEDDING}")])
    given = Published(tensors=(*stored, replace(other, name=EMBEDDING)))
    with pytest.raises(InputError) as caught:
        bind_published(given, configuration.job(), model(), "/source")
    (problem,) = caught.value.problems
    assert f"{EMBEDDING} and model.language_{EMBEDDING} are two spellings of the same tensor" in problem


def test_what_is_filled_in_from_the_reference_is_there():
    known = replace(toy_facts.reference(), index=toy.index())
    shapes = {name: shape for name, shape in toy.shapes().items() if name.startswith("visual.")}
    assert "is missing" in refused(shapes, model(known))
    assert bound(shapes, model(known), fill_from_reference=True) == ()
    # What the reference has and no rule knows is not filled in either.
    more = replace(known, index=toy.index({**toy.shapes(), f"{EMBEDDING}_scale_inv": (1, 1)}))
    assert "filled from reference=/hf: 1 source tensor that no rule" in refused(
        shapes, model(more), fill_from_reference=True
    )


def test_a_part_that_is_asked_for_is_complete_in_itself():
    shapes = {name: shape for name, shape in toy.shapes().items() if name.startswith("visual.")}
    assert bound(shapes, select=["vision"]) == ()
    shapes.popitem()
    assert "is missing" in refused(shapes, select=["vision"])


def test_without_a_definition_it_is_said_what_nobody_checked():
    (said,) = bound({"a": (1,), "b": (2,)}, model(name=None))
    assert said.startswith("names, shapes and number of the tensors: no model definition is for model_type ")
    _, empty = bound({"a": (1,), "b": (0,)}, model(name=None))
    assert empty == "1 tensor without elements: b"


def test_tensors_that_a_definition_only_names_are_said_to_be_unchecked_unless_a_reference_shows_them():
    ignored = next(entry for entry in toy.content()["ignore"])["names"].replace("*", "x")
    shapes = {**toy.shapes(), ignored: (3,)}
    (said,) = bound(shapes, model(toy_facts.reference()))
    assert said.startswith("shapes and number of 1 tensor of which model definition toy knows no more than names")
    assert ignored in said
    assert bound(shapes, model(replace(toy_facts.reference(), index=toy.index(shapes)))) == ()


def test_what_no_rule_knows_is_taken_where_the_reference_has_it_in_names_and_shapes():
    shapes = {**toy.shapes(), "model.odd.weight": (2,)}
    (said,) = bound(shapes, model(replace(toy_facts.reference(), index=toy.index(shapes))))
    assert said == (
        "1 tensor that model definition toy does not know; names and shapes are those of the reference: "
        "model.odd.weight"
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lm_head.weight": (31, 16)}, "lm_head.weight has shape [31, 16], but /hf/config.json says vocab_size 30"),
        ({"model.embed_tokens.weight": (30, 15)}, "and hidden_size 16"),
        (
            {"model.layers.3.mlp.weight": (1,)},
            "model.layers.3: has tensors, but /hf/config.json says num_hidden_layers 3",
        ),
    ],
)
def test_without_a_definition_the_configuration_is_believed_all_the_same(changed, says):
    shapes = {"model.embed_tokens.weight": (30, 16), "lm_head.weight": (30, 16)}
    shapes |= {f"model.layers.{layer}.mlp.weight": (2, 2) for layer in range(3)}
    assert len(bound(shapes, model(name=None))) == 1
    assert says in refused({**shapes, **changed}, model(name=None))
    del shapes["model.layers.1.mlp.weight"]
    assert "model.layers.1: has no tensor, but /hf/config.json says num_hidden_layers 3" in refused(
        shapes, model(name=None)
    )


def test_a_vocabulary_of_other_rows_is_bound_with_these_and_its_head_is_not_filled_in():
    rows = toy.VOCABULARY + 2
    shapes = toy.shapes()
    shapes |= {name: (rows, shapes[name][1]) for name in (EMBEDDING, "lm_head.weight")}
    given = replace(published(shapes), rows=rows)
    known = replace(toy_facts.reference(), index=toy.index())
    options = configuration.job(fill_from_reference=True)
    assert bind_published(given, options, model(known), "/source") == ()
    assert f"has shape [{rows}, " in refused(shapes, model(known))
    # A tied model's head is a copy of its embedding.
    headless = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    tied = model_of("toy", toy.content(), known, toy.config(tie_word_embeddings=True), "/hf", {})
    given = replace(published(headless), rows=rows, tied=True, bound=True)
    assert bind_published(given, options, tied, "/source") == ()


def test_adapters_alone_are_checked_and_what_lies_beside_them_is_not():
    content = {**toy.content(), "adapters": "only", "ignore": []}
    content["rules"]["text"]["mlp"] = content["rules"]["text"]["mlp"][0]["one_of"]["dense"]
    known = model_of("toy", content, toy_facts.reference(), toy.config(), "/hf", {})
    up = "model.layers.0.mlp.up"
    shapes = {f"{up}.lora_A.default.weight": (4, toy.HIDDEN), f"{up}.lora_B.default.weight": (toy.MLP, 4)}
    assert bound({**shapes, EMBEDDING: (1,)}, known) == ()
    assert "has shape [13, 4], expected [12, 'any']" in refused(
        {**shapes, f"{up}.lora_B.default.weight": (13, 4)}, known
    )
    del shapes[f"{up}.lora_B.default.weight"]
    assert f"source tensor {up}.lora_B.default.weight is missing" in refused(shapes, known)
