"""A name in a file is a target with numbers in it, or nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distconv.formats.megatron.names import LocalKey, Targets
from tests.unit import toy


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text.embedding.weight", LocalKey("text.embedding.weight", None, None)),
        ("text.layers.0.norm.weight", LocalKey("text.layers.{layer}.norm.weight", 0, None)),
        ("text.layers.12.mlp.fc1.weight", LocalKey("text.layers.{layer}.mlp.fc1.weight", 12, None)),
        ("text.layers.3.experts.20.fc2.weight", LocalKey("text.layers.{layer}.experts.{expert}.fc2.weight", 3, 20)),
        # The 1 of fc1 is part of a name.
        ("text.layers.3.mlp.fc7.weight", None),
        ("text.layers.01.norm.weight", None),
        ("text.layers.99999999.norm.weight", None),
        ("text.layers.{layer}.norm.weight", None),
        ("text.layers.-1.norm.weight", None),
        ("text.layers.\u0663.norm.weight", None),
        ("module.text.embedding.weight", None),
        ("text.embedding.weight.", None),
        ("", None),
    ],
)
def test_a_name(name, expected):
    targets = Targets(toy.definition().rules)
    assert targets.find(name) == targets.find(name) == expected


def test_a_number_that_a_target_has_twice_is_one_number():
    (rule, *_) = (each for each in toy.definition().rules if each.stage == "layer")
    targets = Targets([replace(rule, target="text.layers.{layer}.norm_{layer}.weight")])
    assert targets.find("text.layers.3.norm_3.weight") == LocalKey("text.layers.{layer}.norm_{layer}.weight", 3, None)
    assert targets.find("text.layers.3.norm_4.weight") is None


def test_the_rules_of_a_target_are_its_alternatives():
    model = toy.content()
    final, head = model["rules"]["text"]["head"]
    other = head | {"sources": [["output.weight", "vocabulary", "hidden"]]}
    model["rules"]["text"]["head"] = [final, {"one_of": {"output": [other], "lm_head": [head]}}]
    found = Targets(toy.definition(model).rules).rules("text.head.weight")
    assert [rule.choice and rule.choice[1] for rule in found] == ["output", "lm_head"]
