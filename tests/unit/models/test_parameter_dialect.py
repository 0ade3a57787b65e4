"""The file of a dialect of training: names of parameters, what they depend on, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.models.parameter_dialect import (
    ParameterDialect,
    is_of_parameters,
    parse_parameter_dialects,
    speak,
)

LIBRARY = Library.of_package()
FILES = {name: each for name, each in LIBRARY.dialects().items() if is_of_parameters(each["content"])}
PACKAGED = parse_parameter_dialects(FILES).dialects
AT = "text_decoder.decoder.layers.{layer}"


def parsed(**contents: Any) -> dict[str, ParameterDialect]:
    files = {name: {"content": content, "path": f"{name}.yaml"} for name, content in contents.items()}
    return dict(parse_parameter_dialects(files).dialects)


def definition(name: str) -> Definition:
    return parse_definition(name, LIBRARY.content(name))


def spoken(dialect: str, model: str, alternative: str | None = None) -> dict[str, set[str]]:
    """The names in a dialect by the definition's own, of layers of one kind."""
    found: dict[str, set[str]] = {}
    result = speak(PACKAGED[dialect], definition(model))
    for rule, own in result.own.items():
        if rule.choice is None or alternative is None or rule.choice[1] == alternative:
            found.setdefault(own.target.removeprefix(f"{AT}."), set()).add(rule.target)
    return found


@pytest.mark.parametrize("model", [name for name in LIBRARY.names() if "lora" not in name])
@pytest.mark.parametrize("dialect", PACKAGED)
def test_every_dialect_is_for_every_model(dialect, model):
    own = definition(model)
    result = speak(PACKAGED[dialect], own)
    assert set(result.own.values()) == set(own.rules)
    assert result.definition.rules == tuple(result.own)
    # No name is that of two rules of one layer.
    for number, rule in enumerate(result.definition.rules):
        for other in result.definition.rules[:number]:
            assert rule.target != other.target or rule.excludes(other)


def test_the_definitions_own_dialect_changes_nothing():
    own = definition("qwen3vl_moe")
    assert [rule.target for rule in speak(PACKAGED["mindspeed_mm"], own).definition.rules] == [
        rule.target for rule in own.rules
    ]


def test_a_norm_is_where_the_kind_of_the_layer_has_it():
    dense, experts = (
        spoken("mcore_te", "qwen3_moe", kind)["pre_mlp_layernorm.weight"] for kind in ("dense", "experts")
    )
    assert dense == {"decoder.layers.{layer}.mlp.linear_fc1.layer_norm_weight"}
    assert experts == {"decoder.layers.{layer}.pre_mlp_layernorm.weight"}


def test_what_is_exchanged_before_does_not_hide_what_a_name_depends_on():
    (mine,) = parsed(
        mine={"parameters": [["text_decoder.", ""], ["decoder.layers.{layer}.pre_", "x.{layer}.", f"{AT}.mlp.router."]]}
    ).values()
    result = speak(mine, definition("qwen3_moe"))
    found = {rule.choice: rule.target for rule, own in result.own.items() if "pre_mlp" in own.target}
    assert {choice and choice[1]: target for choice, target in found.items()} == {
        "dense": "decoder.layers.{layer}.pre_mlp_layernorm.weight",
        "experts": "x.{layer}.mlp_layernorm.weight",
    }


def test_a_norm_before_what_every_layer_has_is_one_rule():
    assert spoken("mcore_te", "qwen3_moe")["input_layernorm.weight"] == {
        "decoder.layers.{layer}.self_attention.linear_qkv.layer_norm_weight"
    }
    assert spoken("mcore_te", "deepseek_v3")["input_layernorm.weight"] == {
        "decoder.layers.{layer}.input_layernorm.weight"
    }


def test_names_of_experts():
    name = "mlp.experts.local_experts.{expert}.linear_fc2.weight"
    at = "decoder.layers.{layer}.mlp.experts"
    assert spoken("mcore_local", "mixtral")[name] == {f"{at}.local_experts.{{expert}}.linear_fc2.weight"}
    assert spoken("mcore_te", "mixtral")[name] == {f"{at}.linear_fc2.weight{{expert}}"}
    assert spoken("mcore_grouped", "mixtral")[name] == {f"{at}.weight2[{{expert}}]"}
    assert spoken("bridge", "mixtral")[name] == {f"language_model.{at}.linear_fc2.weight{{expert}}"}


def test_ends_of_a_tied_head_have_the_names_of_the_dialect():
    tied = speak(PACKAGED["mcore_local"], definition("llama")).definition.tied
    assert tied is not None
    assert (tied.embedding, tied.head) == ("embedding.word_embeddings.weight", "output_layer.weight")


def test_what_is_whole_is_not_cut():
    rules = {rule.target: rule for rule in speak(PACKAGED["mcore_te"], definition("deepseek_v3")).definition.rules}
    at = "decoder.layers.{layer}.self_attention"
    assert rules[f"{at}.linear_kv_down_proj.weight"].tensor_parallel == "replicated"
    assert rules[f"{at}.linear_kv_up_proj.weight"].tensor_parallel == "rows"


def test_a_dialect_that_is_like_another_begins_with_its_exchanges():
    found = parsed(
        first={"parameters": [["a.", "b."]], "whole": ["a.x"]},
        second={"like": "first", "parameters": [["b.", "c."]]},
        third={"like": "second", "parameters": [], "words": "as the third"},
    )
    assert [each.renamed("a.x", lambda _: False) for each in found.values()] == ["b.x", "c.x", "c.x"]
    assert found["third"].whole == ("a.x",)
    assert found["third"].words == "as the third"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"parameters": [["a"]]}, "parameters: expected [beginning, its name, beginning beside], found ['a']"),
        ({"parameters": "a"}, "parameters: expected [beginning, its name, beginning beside], found 'a'"),
        ({"parameters": [["a.{layer}", "b"]]}, "expected the same placeholders in both names"),
        ({"parameters": [["a.{expert}", "b"]]}, "expected the same placeholders in both names"),
        ({"parameters": [], "whole": "a"}, "whole: expected beginnings of targets, found 'a'"),
        ({"parameters": [], "words": 3}, "words: expected text, found 3"),
        ({"parameters": [], "likes": "a"}, "unknown key 'likes'; did you mean 'like'?"),
        (
            {"parameters": [], "like": "other"},
            "like: expected the name of another dialect with parameters, found 'other'",
        ),
        (
            {"parameters": [], "like": "mine"},
            "like: expected the name of another dialect with parameters, found 'mine'",
        ),
        ({"parameters": [], "like": ["a"]}, "like: expected the name of another dialect with parameters, found ['a']"),
    ],
)
def test_a_problem_is_named(content, problem):
    with pytest.raises(InputError) as caught:
        parsed(mine=content)
    assert any(each.startswith("mine.yaml: ") and problem in each for each in caught.value.problems)


def test_a_dialect_that_is_not_there_is_refused_with_the_nearest():
    dialects = parse_parameter_dialects(FILES)
    assert dialects.chosen("mcore_te", "dialect").name == "mcore_te"
    with pytest.raises(InputError, match="dialect=mcore_tee: no such dialect of Megatron-side names; the nearest is"):
        dialects.chosen("mcore_tee", "dialect")
