"""What the keys of a job select, in the plan that comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.megatron.plan import MegatronPlan
from distconv.layout.request import Layout
from distconv.planning.facts import Facts
from distconv.planning.plan import Planned, plan_job, shares_of
from tests import configuration
from tests.unit import toy, toy_facts

CONFIG = configuration.job(action="plan")


def facts(shapes: dict[str, tuple[int, ...]] | None = None, *, text: bool = False, **definition: Any) -> Facts:
    source = replace(
        toy_facts.PUBLISHED,
        model=replace(toy_facts.PUBLISHED.model, index=toy.index(shapes)),
        text=toy_facts.PUBLISHED.model if text else None,
    )
    return toy_facts.facts(source, definition={**toy.content(), **definition})


def planned(known: Facts | None = None, **changes: Any) -> Planned:
    return plan_job(replace(CONFIG, **changes), known or facts())


def plan(known: Facts | None = None, **changes: Any) -> MegatronPlan:
    found = planned(known, **changes).plan
    assert isinstance(found, MegatronPlan)
    return found


def names(found: MegatronPlan) -> set[str]:
    return {parameter.name.split(".layers.")[0] for parameter in found.binding.parameters}


def reasons(found: MegatronPlan) -> set[str]:
    return {each.reason for each in found.binding.unconverted}


TEXT = {"text.embedding.weight", "text", "text.final.weight", "text.head.weight"}
VISION = {"vision.patch.weight", "vision", "vision.projector.weight"}


def test_everything_is_converted_unless_something_is_selected():
    assert names(plan()) == TEXT | VISION
    assert names(plan(select=("text", "vision"))) == TEXT | VISION
    assert names(plan(select=("vision",))) == VISION
    assert names(plan(select=("text",))) == TEXT
    assert reasons(plan(select=("text",))) == {"not selected: vision (select=[text])"}


def test_a_modality_that_the_model_does_not_have_cannot_be_selected():
    with pytest.raises(InputError, match="select: toy has no audio modality; it has text, vision"):
        plan(select=("audio",))


def test_the_projector_can_be_left_out():
    found = plan(projector="omit")
    assert names(found) == (TEXT | VISION) - {"vision.projector.weight"}
    assert reasons(found) == {"projector left out (projector=omit); projector=keep keeps it"}
    assert names(plan(projector="keep")) == TEXT | VISION


def test_a_separate_language_model_replaces_that_of_the_source_and_leaves_its_projector_out():
    found = plan(facts(text=True), text_source=Path("/hf"))
    assert names(found) == (TEXT | VISION) - {"vision.projector.weight"}
    assert reasons(found) == {
        "the language model comes from text_source=/hf",
        "projector left out (projector=auto, with text_source); projector=keep keeps it",
        "text_source: only its language model is converted",
    }
    assert names(plan(facts(text=True), text_source=Path("/hf"), projector="keep")) == TEXT | VISION


def test_the_language_model_of_the_source_may_be_missing_where_there_is_a_separate_one():
    shapes = {name: shape for name, shape in toy.shapes().items() if name.startswith("visual.")}
    assert names(plan(facts(shapes, text=True), text_source=Path("/hf"))) >= TEXT


def test_layout_vocabulary_and_tied_head_are_those_of_the_job():
    found = plan(layout=Layout(tp=2, pp=2), vocab_size=64)
    assert len(found.files) == 4
    shapes = {parameter.name: parameter.recipe.tensor.shape for parameter in found.binding.parameters}
    assert shapes["text.head.weight"] == (64, toy.HIDDEN)
    with pytest.raises(InputError, match="tied_head=omit"):
        plan(tied_head="omit")


def _with_an_adapter() -> dict[str, tuple[int, ...]]:
    shapes = toy.shapes()
    module = "visual.blocks.0.proj"
    shapes[f"{module}.base_layer.weight"] = shapes.pop(f"{module}.weight")
    shapes[f"{module}.base_layer.bias"] = shapes.pop(f"{module}.bias")
    shapes[f"{module}.lora_A.weight"] = (2, toy.VISION_WIDTH)
    shapes[f"{module}.lora_B.weight"] = (toy.VISION_WIDTH, 2)
    return shapes


def test_adapters_beside_base_weights_are_converted_with_them():
    """A module may be adapted in one layer and plain in another."""
    found = {parameter.name for parameter in plan(facts(_with_an_adapter(), adapters="beside")).binding.parameters}
    assert {name for name in found if name.startswith("vision.layers.0.proj.")} == {
        "vision.layers.0.proj.base_layer.weight",
        "vision.layers.0.proj.base_layer.bias",
        "vision.layers.0.proj.lora_A.default.weight",
        "vision.layers.0.proj.lora_B.default.weight",
    }
    assert {name for name in found if name.startswith("vision.layers.1.proj.")} == {
        "vision.layers.1.proj.weight",
        "vision.layers.1.proj.bias",
    }


def test_adapters_beside_base_weights_can_be_converted_alone():
    found = plan(facts(_with_an_adapter(), adapters="beside"), lora_only=True)
    assert {parameter.name for parameter in found.binding.parameters} == {
        "vision.layers.0.proj.lora_A.default.weight",
        "vision.layers.0.proj.lora_B.default.weight",
    }
    assert reasons(found) == {"not an adapter (lora_only=true)"}


def test_a_model_without_adapters_cannot_be_converted_to_them_alone():
    with pytest.raises(InputError, match="lora_only=true: toy is not for sources that hold adapters"):
        plan(lora_only=True)


def test_the_plan_is_the_same_wherever_it_is_made():
    shared = Facts.from_json(json.loads(json.dumps(facts().to_json())))
    assert plan(shared, layout=Layout(tp=2, pp=2)).files == plan(layout=Layout(tp=2, pp=2)).files


def test_replicas_are_divided_over_processes():
    replicas = tuple(SimpleNamespace(nbytes=nbytes) for nbytes in (3, 1, 2, 2))
    assert [[each.nbytes for each in share] for share in shares_of(replicas, 2)] == [[3, 1], [2, 2]]
    assert sum(map(len, shares_of(replicas, 100_000))) == 4
