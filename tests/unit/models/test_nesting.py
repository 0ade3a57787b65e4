"""A language model inside of another: its fields are sought in parts of config.json, its names exchanged."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.models.nesting import Nesting
from distconv.models.sizes import SizeSpec

LIBRARY = Library.of_package()
INSIDE = {"language_model": {"config": ["text_config", ""], "names": [["model.", "inner.model."], ["", "inner."]]}}


def test_a_field_is_sought_in_all_parts_before_another_one_is():
    nesting = Nesting.parse({"config": ["text_config", ""]})
    found = nesting.size(SizeSpec(path=("num_experts", "vision_config.depth", "num_local_experts"), default=3))
    assert found.path == (
        "text_config.num_experts", "num_experts", "vision_config.depth",
        "text_config.num_local_experts", "num_local_experts",
    )  # fmt: skip
    assert found.default == 3


def test_without_it_everything_is_where_it_is_said():
    spec = SizeSpec(path=("hidden_size", "text_config.hidden_size"))
    assert Nesting.parse({}).size(spec) == spec
    assert Nesting.parse({}).name("model.norm.weight") == "model.norm.weight"


def test_rules_sizes_and_copies_of_a_language_model_are_where_it_lies():
    alone = parse_definition("alone", LIBRARY.content("deepseek_v3"))
    inside = parse_definition("inside", {**LIBRARY.content("deepseek_v3"), **INSIDE})
    for one, other in zip(alone.rules, inside.rules, strict=True):
        assert other.target == one.target
        assert other.source_names == tuple(f"inner.{name}" for name in one.source_names)
    assert inside.sizes["kv_rank"].path == ("text_config.kv_lora_rank", "kv_lora_rank")
    assert [(each.name, each.of) for each in inside.copied] == [
        (f"inner.{each.name}", f"inner.{each.of}") for each in alone.copied
    ]


def test_only_names_of_the_language_model_are_exchanged():
    content = LIBRARY.content("qwen3vl")
    rules = parse_definition("qwen3vl", {**content, **INSIDE}).rules
    named = {rule.modality: {name.startswith("inner.") for name in rule.source_names} for rule in rules}
    assert named == {"text": {True}, "vision": {False}}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "expected {config: [part of config.json, …], names: [[old, new], …]}, found []"),
        ({"confg": ["a"]}, "unknown key 'confg'; did you mean 'config'?"),
        ({"config": "text_config"}, "config: expected parts of config.json, \"\" for all of it, found 'text_config'"),
        ({"config": []}, 'config: expected parts of config.json, "" for all of it, found []'),
        ({"names": [["model."]]}, "names: expected pairs of beginnings, found [['model.']]"),
        ({"names": [["model.", 3]]}, "names: expected pairs of beginnings, found [['model.', 3]]"),
        ({"names": "model."}, "names: expected pairs of beginnings, found 'model.'"),
    ],
)
def test_a_problem_is_named(value: Any, problem: str):
    with pytest.raises(InputError) as caught:
        parse_definition("toy", {**LIBRARY.content("llama"), "language_model": value})
    assert caught.value.problems == [f"model definition toy: language_model: {problem}"]
