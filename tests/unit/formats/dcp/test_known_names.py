"""The names that are known are those that binding uses and makes, in every spelling."""

from __future__ import annotations

import pytest

from distconv.formats.dcp.known_names import known_parameters, known_tensors
from distconv.formats.model import Reference
from tests.unit import toy

OPTIONAL = {"model.positions.weight", *(f"model.layers.{layer}.norm.bias" for layer in range(toy.LAYERS))}


def reference(shards: dict[str, str] | None = None, **config: object) -> Reference:
    return Reference(
        directory="/hf",
        config=toy.config(**config),
        is_adapter=False,
        index=None,
        shard_files=shards,
        index_content=None,
    )


def test_without_shards_the_rules_know_every_tensor_that_a_model_may_have():
    found = known_tensors(toy.definition(), reference())
    assert found >= toy.shapes().keys() | OPTIONAL
    spelled = {toy.definition().spelled(name) for name in found}
    # Any layer may be dense or a mixture.
    either = {f"model.layers.{layer}.mlp.up.weight" for layer in range(toy.LAYERS)}
    assert either <= spelled
    assert not any(f".{toy.LAYERS}." in name and "experts" not in name for name in spelled)
    assert not any(f"experts.{toy.EXPERTS}." in name for name in spelled)


def test_every_spelling_of_a_name_is_known():
    found = known_tensors(toy.definition(), reference({"lm_head.weight": "x", "visual.patch.weight": "x"}))
    assert found == {"lm_head.weight", "visual.patch.weight", "model.visual.patch.weight"}
    found = known_tensors(toy.definition(), reference({"model.norm.weight": "x"}))
    assert found == {"model.norm.weight", "model.language_model.norm.weight"}


def test_the_shards_of_a_reference_are_more_certain_than_rules():
    assert known_tensors(toy.definition(), reference({"other": "x"})) == {"other"}


def test_parameters_are_those_that_binding_makes():
    found = known_parameters(toy.definition(), reference())
    shapes = toy.shapes() | dict.fromkeys(OPTIONAL, (toy.HIDDEN,))
    assert found >= {each.name for each in toy.bound(shapes).parameters}
    assert known_parameters(toy.definition(), reference({"other": "x"})) == found
    numbers = {int(name.split(".")[2]) for name in found if name.startswith("text.layers.")}
    assert numbers == set(range(toy.LAYERS))


@pytest.mark.parametrize(
    ("field", "parameter", "tensor"),
    [
        ("num_hidden_layers", "text.layers.", "model.layers."),
        ("num_experts", "text.layers.1.experts.", "model.layers.1.experts.0."),
    ],
)
def test_what_the_configuration_does_not_say_is_not_known(field, parameter, tensor):
    for names_of, start in ((known_parameters, parameter), (known_tensors, tensor)):
        complete, found = (names_of(toy.definition(), known) for known in (reference(), reference(**{field: None})))
        assert found < complete
        assert any(name.startswith(start) for name in complete)
        assert not any(name.startswith(start) for name in found)
