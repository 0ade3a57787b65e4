"""Layers that predict further tokens: their rules follow from those of the model's layers, for any number of them."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.models.predicting import inside_of, unnumbered, with_number
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes

CONTENT = Library.of_package().content("deepseek_v3")
INSIDE = "text_decoder.mtp.layers.{next}.transformer_layer."


def definition(**changes: Any) -> Definition:
    return parse_definition("deepseek_v3", {**CONTENT, **changes})


def of_model(**config: Any) -> Definition:
    own = definition()
    return own.of_model(Sizes(own.sizes, config, "config.json"))


def predicting(found: Definition) -> list[Rule]:
    return [rule for rule in found.rules if rule.section == "mtp"]


def test_the_layer_inside_is_a_layer_of_the_model_in_every_combination_of_kinds():
    rules = predicting(definition())
    kinds = {rule.choice[1] for rule in rules if rule.choice}
    assert kinds == {f"{one} and {other}" for one in ("low_rank_q", "full_q") for other in ("dense", "experts")}
    assert {rule.choice and rule.choice[0] for rule in rules} == {"text.mtp"}
    for kind in kinds:
        targets = [rule.target.removeprefix(INSIDE) for rule in rules if rule.choice and rule.choice[1] == kind]
        one, other = kind.split(" and ")
        layers = [
            rule.target.removeprefix("text_decoder.decoder.layers.{layer}.")
            for rule in definition().rules
            if "decoder.layers" in rule.target and (rule.choice is None or rule.choice[1] in (one, other))
        ]
        assert sorted(each for each in targets if "mtp" not in each) == sorted(layers)
        assert sum("mtp" in each for each in targets) == 4
    assert all(rule.stage == "last" and rule.may_be_absent for rule in rules)


def test_what_a_layer_inside_is_made_of_is_published_behind_the_layers_of_the_model():
    rules = predicting(of_model(num_hidden_layers=61, num_nextn_predict_layers=2))
    found = {rule.target: rule.source_names for rule in rules}
    at = "text_decoder.mtp.layers.1"
    assert found[f"{at}.eh_proj.weight"] == ("model.layers.62.eh_proj.weight",)
    name = f"{at}.transformer_layer.mlp.experts.local_experts.{{expert}}.linear_fc2.weight"
    assert found[name] == ("model.layers.62.mlp.experts.{expert}.down_proj.weight",)
    assert {unnumbered(target)[1] for target in found} == {"0", "1"}
    copied = {each.name for each in of_model(num_hidden_layers=61, num_nextn_predict_layers=2).copied}
    assert copied == {
        f"model.layers.{layer}.{name}.weight" for layer in (61, 62) for name in ("embed_tokens", "shared_head.head")
    }


@pytest.mark.parametrize("said", [{}, {"num_nextn_predict_layers": 0}, {"num_nextn_predict_layers": 1}])
def test_there_may_be_one_whatever_is_said(said):
    assert {unnumbered(rule.target)[1] for rule in predicting(of_model(num_hidden_layers=2, **said))} == {"0"}


def test_without_a_number_of_layers_names_stay_as_they_are():
    own = definition()
    assert own.of_model(Sizes(own.sizes, {"num_nextn_predict_layers": 3}, "config.json")) is own
    assert all("{next}" in rule.target for rule in predicting(of_model()))


def test_a_definition_can_be_without_them():
    found = definition().without_predicting()
    assert predicting(found) == []
    assert len(found.rules) == len(definition().rules) - len(predicting(definition()))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("text_decoder.mtp.layers.12.enorm.weight", ("text_decoder.mtp.layers.{next}.enorm.weight", "12")),
        ("mtp.layers.0.enorm.weight", ("mtp.layers.{next}.enorm.weight", "0")),
        ("smtp.layers.0.enorm.weight", ("smtp.layers.0.enorm.weight", "{next}")),
        ("text_decoder.decoder.layers.{layer}.x", ("text_decoder.decoder.layers.{layer}.x", "{next}")),
    ],
)
def test_the_number_in_a_target(target, expected):
    assert unnumbered(target) == expected
    assert with_number(*expected) == target


def test_a_beginning_inside():
    assert inside_of("text_decoder.decoder.layers.{layer}.mlp.") == f"{INSIDE}mlp."
    assert inside_of("text_decoder.decoder.final_layernorm.") is None


MISPLACED = {"target": "text_decoder.{next}.x", "sources": [["model.layers.{next}.x", "hidden"]], "stage": "last"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"predicting": "layerz"}, "predicting: expected the name of a size, beside text, found 'layerz'"),
        ({"predicting": None}, "predicting: {next} stands in targets of section mtp, and needs the size that is"),
        ({"rules": {"text": {"head": [MISPLACED]}}}, "found 'mtp_layers' and text_decoder.{next}.x in rule text.head"),
        (
            {"rules": {"text": {"mtp": [{**MISPLACED, "target": "text_decoder.x"}]}}},
            "{next} stands in a source but not in the target",
        ),
        (
            {"rules": {"text": {"mtp": [{**MISPLACED, "sources": [["model.x", "hidden"]]}]}}},
            "{next} stands in the target but not in every source",
        ),
    ],
)
def test_a_problem_is_named(changes, problem):
    with pytest.raises(InputError) as caught:
        definition(**{**changes, "tied": None} if "rules" in changes else changes)
    assert any(problem in each for each in caught.value.problems), caught.value.problems
