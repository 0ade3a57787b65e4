"""What a definition says of a model of given sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distconv.errors import InputError
from distconv.models.definition_parser import parse_definition
from distconv.models.sizes import Sizes
from tests.unit import toy


def test_without_its_base_only_a_definition_of_adapters_alone_loses_sizes():
    content = toy.content()
    found = parse_definition("toy", content)
    assert found.without_base() is found
    alone = parse_definition("toy", {**content, "adapters": "only"})
    assert {dim for rule in alone.rules for dim in rule.sources[0].dims} > {"any"}
    assert {dim for rule in alone.without_base().rules for dim in rule.sources[0].dims} == {"any"}
    assert {rule.unit for rule in alone.rules} > {None}
    assert {rule.unit for rule in alone.without_base().rules} == {None}


def test_without_its_base_nothing_is_asked_of_layouts_that_sizes_must_tell():
    first = {"modality": "text", "first_stage": "deep", "reason": "features"}
    tower = {"modality": "vision", "one_stage": True, "reason": "one tower"}
    found = parse_definition("toy", {**toy.content(), "adapters": "only", "layout": [first, tower]})
    assert [each.reason for each in found.restrictions] == ["features", "one tower"]
    assert [each.reason for each in found.without_base().restrictions] == ["one tower"]


def test_a_count_is_the_length_of_a_list_or_the_value_of_a_size():
    found = toy.definition()
    sizes = Sizes(found.sizes, toy.config(vision_config={"deep": [5, 7, 9]}), "config.json")
    assert found.count("deep", sizes) == 3
    assert found.count("heads", sizes) == toy.HEADS


def test_the_number_of_experts_is_that_of_the_configuration():
    found = toy.definition()
    assert found.expert_count(Sizes(found.sizes, toy.config(num_experts=7), "config.json")) == 7
    with pytest.raises(InputError, match="num_experts"):
        found.expert_count(Sizes(found.sizes, toy.config(num_experts=None), "config.json"))
    dense = replace(found, experts=None)
    assert dense.expert_count(Sizes(found.sizes, toy.config(), "config.json")) is None


def test_a_rule_is_found_by_its_target():
    found = toy.definition()
    assert found.rule_for("text.layers.{layer}.qkv.bias").tensor_parallel == "rows"


def test_head_and_embedding_are_those_of_the_alternative_that_is_there():
    content = toy.content()
    text = content["rules"]["text"]
    for section in ("embedding", "head"):
        (rule,) = [each for each in text[section] if each.get("target") == f"text.{section}.weight"]
        others = [each for each in text[section] if each is not rule]
        (source, *dims) = rule["sources"][0]
        text[section] = [*others, {"one_of": {
            "one": [rule], "other": [{**rule, "sources": [[f"other.{source}", *dims]]}],
        }}]  # fmt: skip
    found = toy.definition(content)
    head, embedding = toy.definition().tied_sources(())
    assert found.tied_sources({head, embedding}) == (head, embedding)
    assert found.tied_sources({f"other.{embedding}"}) == (f"other.{head}", f"other.{embedding}")
    assert found.tied_sources({f"other.{head}", "else"}) == (f"other.{head}", f"other.{embedding}")
