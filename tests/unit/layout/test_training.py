"""Layouts that the training side cannot run are refused with the reason, or noted where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.layout.training import check_training, text_on_first_stage
from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.rules import TEXT
from distconv.models.sizes import Sizes
from tests.unit import toy

ONE_TOWER = {"modality": "vision", "one_stage": True, "reason": "towers stay whole"}
DEEP = {"modality": "text", "first_stage": "deep", "reason": "features stay here"}
REMEDY = "; give other stages, or layout.check=false to convert nevertheless"


def check(
    *restrictions: dict[str, Any], deep: tuple[int, ...] = (0, 1), without: str = "", **request: Any
) -> list[str]:
    """The notes on a layout of the toy model, with restrictions, and without the parameters of a modality."""
    definition, sizes = defined(*restrictions, deep=deep)
    wanted = Layout(**request)
    binding = toy.bound(left_out=lambda rule: "not wanted" if rule.modality == without else None)
    least = text_on_first_stage(definition, sizes, binding.layers)
    layout = complete_layout(wanted, binding, definition, text_on_first_stage=least)
    return list(check_training(layout, wanted, definition, sizes))


def defined(*restrictions: dict[str, Any], deep: tuple[int, ...] = (0, 1)) -> tuple[Definition, Sizes]:
    definition = parse_definition("toy", {**toy.content(), "layout": list(restrictions)})
    config = toy.config(vision_config={**toy.config()["vision_config"], "deep": list(deep)})
    return definition, Sizes(definition.sizes, config, "config.json")


def refused(*restrictions: dict[str, Any], **request: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        check(*restrictions, **request)
    assert all(each.endswith(REMEDY) for each in caught.value.problems)
    problems = [each.removesuffix(REMEDY) for each in caught.value.problems]
    # What is refused is noted where it is not to be refused.
    assert check(*restrictions, check=False, **request)[: len(problems)] == problems
    return problems


def test_nothing_is_said_of_a_layout_that_keeps_every_restriction():
    assert check(ONE_TOWER, DEEP) == []
    assert check(ONE_TOWER, DEEP, stages={"text": ((2, 1),), "vision": ((2, 0),)}) == []
    # An encoder may come before the text, or end where it begins.
    assert check(stages={"text": ((0, 3),), "vision": ((2, 0),)}) == []
    assert check(stages={"text": ((0, 3),), "vision": ((1, 1),)}) == []


def test_an_encoder_that_repeats_is_on_one_stage_and_on_none_after_the_text():
    assert check(ONE_TOWER, stages={"text": ((2, 1, 0),), "vision": ((2,),)}) == []


def test_a_tower_that_must_be_on_one_stage():
    assert refused(ONE_TOWER, stages={"text": ((1, 2),), "vision": ((1, 1),)}) == [
        "layout.stages.vision=[1,1]: has vision layers on 2 stages, expected 1: towers stay whole"
    ]


@pytest.mark.parametrize("text", [((1, 2),), ((0, 3),), ((0, 1), (2, 0))])
def test_layers_that_must_be_on_the_first_stage(text):
    (problem,) = refused(DEEP, stages={"text": text})
    shown = str([list(row) for row in text] if len(text) > 1 else list(text[0])).replace(" ", "")
    found = "1 text layer" if text[0][0] == 1 else "0 text layers"
    assert problem == (
        f"layout.stages.text={shown}: has {found} on the first stage, expected at least 2 (deep): features stay here"
    )


def test_as_many_as_config_json_lists_must_be_on_the_first_stage():
    stages = {"text": ((2, 1),)}
    assert check(DEEP, deep=(0, 1), stages=stages) == []
    assert "expected at least 3 (deep)" in refused(DEEP, deep=(0, 1, 2), stages=stages)[0]
    # A model with fewer layers has all of them there.
    assert check(DEEP, deep=(0, 1, 2, 3, 4), stages={"text": ((3, 0),)}) == []
    assert text_on_first_stage(*defined(DEEP, ONE_TOWER, deep=(3, 4, 5)), ["text", "vision"]) == 3
    assert text_on_first_stage(*defined(ONE_TOWER, {**DEEP, "modality": "vision"}), ["text", "vision"]) == 0


def test_a_size_may_tell_how_many():
    by_size = {**DEEP, "first_stage": "vision_layers"}
    assert check(by_size, stages={"text": ((toy.VISION_LAYERS, 1),)}) == []
    assert "expected at least 2 (vision_layers)" in refused(by_size, stages={"text": ((1, 2),)})[0]


def test_an_encoder_after_the_last_text_layer():
    (problem,) = refused(stages={"text": ((3, 0),), "vision": ((1, 1),)})
    assert problem == (
        "layout.stages.vision=[1,1]: has vision layers on pipeline rank 1, expected none after pipeline rank 0, which "
        "has the last text layer: no text layer would get their features"
    )
    (problem,) = refused(stages={"text": ((1, 2), (0, 0)), "vision": ((0, 1), (1, 0))})
    assert "on pipeline rank 0 of virtual stage 1, expected none after pipeline rank 1 of virtual stage 0," in problem


def test_an_encoder_after_the_beginning_of_the_text_is_noted():
    (note,) = check(stages={"text": ((1, 2),), "vision": ((1, 1),)})
    assert note == (
        "layout.stages.vision=[1,1]: has vision layers on pipeline rank 1, after pipeline rank 0, where the text "
        "begins: the training side is not known to run this"
    )


def test_in_u_shape_the_text_begins_with_its_embedding_on_pipeline_rank_0():
    stages = {"text": ((0, 0), (0, 3)), "vision": ((1, 0), (1, 0))}
    assert check(stages=stages, placement="u_shape") == []
    after = {**stages, "vision": ((1, 0), (0, 1))}
    assert "where the text begins" in check(stages=after, placement="u_shape")[0]
    assert check(stages=after) == []


def test_the_text_list_counts_where_no_text_is_converted():
    both = {"text": ((3, 0),), "vision": ((0, 2),)}
    assert "layout.stages.vision=[0,2]" in refused(stages=both, without=TEXT)[0]
    assert "layout.stages.text=[1,2]" in refused(DEEP, stages={**both, "text": ((1, 2),)}, without=TEXT)[0]
    assert check(DEEP, stages={"vision": ((0, 2),)}, without=TEXT) == []
    assert check(DEEP, stages={**both, "text": ((0, 0),)}, without=TEXT) == []
    assert check(stages=both, without="vision") == []


def test_the_text_of_a_larger_model_alone_is_trained_as_any_language_model_is():
    assert check(DEEP, stages={"text": ((0, 3),)}, without="vision") == []
    definition, sizes = defined(DEEP)
    assert text_on_first_stage(definition, sizes, ["text"]) == 0
    assert text_on_first_stage(replace(definition, modalities={"text": "layers"}), sizes, ["text"]) == 2


def test_all_problems_are_told_together():
    stages = {"text": ((1, 2, 0),), "vision": ((1, 0, 1),)}
    problems = refused(ONE_TOWER, DEEP, stages=stages)
    assert [each.partition(":")[0] for each in problems] == [
        "layout.stages.vision=[1,0,1]",
        "layout.stages.text=[1,2,0]",
        "layout.stages.vision=[1,0,1]",
    ]


def test_a_chosen_text_list_is_never_refused():
    assert check(DEEP, ONE_TOWER, pp=3, deep=(0, 1)) == []
    assert check(pp=3, stages={"vision": ((0, 0, 2),)})[0].endswith("is not known to run this")
