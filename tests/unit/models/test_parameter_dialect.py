"""The file of a dialect of training: names of parameters, what they depend on, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.models.parameter_dialect import ParameterDialect, speak
from distconv.models.parameter_dialect_file import is_of_parameters, parse_parameter_dialects

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
    used = {part for rule in result.own.values() for part in result.parts.get(rule, (rule,))}
    assert used == set(own.rules)
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


def test_what_is_joined_is_one_rule_of_each_kind_of_layer():
    result = speak(PACKAGED["mindspeed_llm"], definition("deepseek_v3"))
    at = "decoder.layers.{layer}.self_attention"
    found = [rule for rule in result.definition.rules if rule.target == f"{at}.linear_qkv.weight"]
    sources = {rule.choice and rule.choice[1]: [each.dims[0] for each in rule.sources] for rule in found}
    assert sources == {"low_rank_q": ["q_rank", "latent"], "full_q": ["query_rows", "latent"]}
    assert {(rule.operator, rule.tensor_parallel, rule.unit) for rule in found} == {("concat", "replicated", None)}
    assert not any("down_proj" in rule.target or "linear_q_proj" in rule.target for rule in result.definition.rules)


def test_a_part_stays_by_itself_in_layers_that_do_not_join_it():
    joined = [[f"{AT}.x.weight", *(f"{AT}.self_attention.linear_{part}_down_proj.weight" for part in ("q", "kv"))]]
    (mine,) = parsed(mine={"parameters": [], "joined": joined}).values()
    result = speak(mine, definition("deepseek_v3"))
    rules = [rule for rule in result.definition.rules if rule.section == "qkv"]
    assert {rule.choice[1] for rule in rules if rule.choice and rule.target == f"{AT}.x.weight"} == {"low_rank_q"}
    alone = [rule.choice for rule in rules if "linear_kv_down_proj" in rule.target]
    assert [choice and choice[1] for choice in alone] == ["full_q"]


def test_layers_that_predict_have_the_names_of_others():
    mine, local = parsed(
        mine={"parameters": [[f"{AT}.mlp.router.", f"{AT}.mlp.gate."]]},
        local={"parameters": [[f"{AT}.mlp.router.", "gates.{layer}."]]},
    ).values()
    inside = "text_decoder.mtp.layers.{next}.transformer_layer.mlp"
    for name, dialect in (("gate", mine), ("router", local)):
        found = {rule.target for rule in speak(dialect, definition("glm4_moe")).definition.rules}
        assert f"{inside}.{name}.weight" in found
    assert mine.renamed(inside.replace("{next}", "12") + ".router.x", lambda _: False).endswith(
        "layers.12.transformer_layer.mlp.gate.x"
    )


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
        ({"parameters": [["a.{next}", "b"]]}, "expected the same placeholders in both names"),
        (
            {"parameters": [], "joined": [["a", "b"]]},
            "joined: expected [target, target of a part, target of another, …], found ['a', 'b']",
        ),
        ({"parameters": [], "joined": [["a", "b", "c.{layer}"]]}, "expected the same placeholders in all targets"),
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
