"""The rules of LoRA factors follow from those of the modules they adapt; the names that PEFT gives to tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distconv.models.adapters import (
    belongs_to_adapter,
    canonical_factor,
    factor_of,
    is_trained_otherwise,
    module_of,
    named_adapters_problem,
    plain_name,
    rules_of_adapters,
    rules_with_adapters,
    saved_factor,
    without_sizes,
)
from distconv.models.rules import Rule, SourcePattern, parse_rules

SIZES = ("hidden", "ffn", "heads")


def rules(**changes: Any) -> list[Rule]:
    entry = {
        "target": "layers.{layer}.fc.weight",
        "sources": [["model.{layer}.fc.weight", "ffn", "hidden"]],
        "tp": ["rows", "heads"],
        **changes,
    }
    return list(parse_rules("text", "mlp", 0, entry, SIZES, ()))


@pytest.mark.parametrize(
    ("tensor_parallel", "of_a", "of_b"),
    [
        # The factor on the side that is cut is cut like the module; the other has that side not at all.
        ("rows", "replicated", "rows"),
        ("rows_uneven", "replicated", "rows_uneven"),
        ("rows3", "replicated", "rows3"),
        ("glu", "replicated", "glu"),
        ("cols", "cols", "replicated"),
        ("cols_uneven", "cols_uneven", "replicated"),
    ],
)
def test_the_factor_on_the_cut_side_is_cut_like_the_module(tensor_parallel, of_a, of_b):
    _, _, a, b = rules_with_adapters(rules(tp=[tensor_parallel, "heads"]))
    assert (a.tensor_parallel, a.unit) == (of_a, None if of_a == "replicated" else "heads")
    assert (b.tensor_parallel, b.unit) == (of_b, None if of_b == "replicated" else "heads")


def test_beside_base_weights_a_module_is_plain_or_adapted():
    plain, base, a, b = rules_with_adapters(rules())
    assert (plain.target, plain.sources[0].name) == ("layers.{layer}.fc.weight", "model.{layer}.fc.weight")
    assert base.target == "layers.{layer}.fc.base_layer.weight"
    assert base.sources == (SourcePattern(name="model.{layer}.fc.base_layer.weight", dims=("ffn", "hidden")),)
    assert a.target == "layers.{layer}.fc.lora_A.default.weight"
    assert a.sources == (SourcePattern(name="model.{layer}.fc.lora_A.default.weight", dims=("any", "hidden")),)
    assert b.target == "layers.{layer}.fc.lora_B.default.weight"
    assert b.sources == (SourcePattern(name="model.{layer}.fc.lora_B.default.weight", dims=("ffn", "any")),)
    assert all(plain.excludes(other) for other in (base, a, b))
    assert not any(base.excludes(other) for other in (a, b))
    assert [rule.is_adapter for rule in (plain, base, a, b)] == [False, False, True, True]


def test_the_bias_of_an_adapted_module_belongs_to_its_base():
    given = rules(target="layers.{layer}.fc.{weight,bias}", sources=[["m.{layer}.fc.{weight,bias}", "ffn", "hidden"]])
    found = {rule.target: rule for rule in rules_with_adapters(given)}
    assert sorted(found) == [
        "layers.{layer}.fc.base_layer.bias",
        "layers.{layer}.fc.base_layer.weight",
        "layers.{layer}.fc.bias",
        "layers.{layer}.fc.lora_A.default.weight",
        "layers.{layer}.fc.lora_B.default.weight",
        "layers.{layer}.fc.weight",
    ]
    assert found["layers.{layer}.fc.bias"].excludes(found["layers.{layer}.fc.base_layer.bias"])


@pytest.mark.parametrize(
    "changes",
    [
        # Vectors, experts, and whatever stands outside of the layers.
        {"operator": ["qkv_heads", "heads"]},
        {"sources": [["m.{layer}.fc.weight", "ffn"]]},
        {"target": "layers.{layer}.{expert}.fc.weight", "sources": [["m.{layer}.{expert}.weight", "ffn", "hidden"]]},
        {"target": "fc.weight", "sources": [["fc.weight", "ffn", "hidden"]], "stage": "first"},
        {"target": "layers.{layer}.table", "sources": [["m.{layer}.table", "ffn", "hidden"]]},
    ],
)
def test_what_cannot_be_adapted_stays_as_it_is(changes):
    given = rules(**changes)
    assert list(rules_with_adapters(given)) == given
    assert list(rules_of_adapters(given)) == []


JOINED = {
    "target": "layers.{layer}.mlp.linear_fc1.weight",
    "operator": "concat",
    "sources": [["m.{layer}.gate_proj.weight", "ffn", "hidden"], ["m.{layer}.up_proj.weight", "ffn", "hidden"]],
}


@pytest.mark.parametrize(
    ("tensor_parallel", "cut"), [("glu", "rows"), (["rows", "heads"], "rows"), ("replicated", "replicated")]
)
def test_linears_of_one_parameter_have_adapters_each_by_itself(tensor_parallel, cut):
    given = rules(**JOINED, tp=tensor_parallel)
    assert list(rules_with_adapters(given)) == given
    found = list(rules_of_adapters(given))
    for part, (a, b) in zip(("gate", "up"), (found[:2], found[2:]), strict=True):
        assert a.target == f"layers.{{layer}}.mlp.{part}_proj.lora_A.default.weight"
        assert b.sources == (SourcePattern(name=f"m.{{layer}}.{part}_proj.lora_B.default.weight", dims=("ffn", "any")),)
        assert (a.tensor_parallel, b.tensor_parallel, b.operator) == ("replicated", cut, "rename")
        assert (a.unit, b.unit) == (None, "heads" if isinstance(tensor_parallel, list) else None)
        assert a.choice == b.choice


def test_experts_and_linears_that_are_cut_in_other_ways_have_no_adapters():
    sources = [["m.{layer}.{expert}.a.weight", "ffn", "hidden"], ["m.{layer}.{expert}.b.weight", "ffn", "hidden"]]
    experts = {**JOINED, "target": "layers.{layer}.{expert}.fc1.weight", "sources": sources}
    assert list(rules_of_adapters(rules(**experts, tp="glu"))) == []
    assert list(rules_of_adapters(rules(**JOINED, tp="rows_uneven"))) == []


def test_a_linear_of_several_alternatives_has_one_adapter_for_each_tensor_that_it_is_made_of():
    one, other = rules(), rules(sources=[["model.{layer}.other.weight", "ffn", "hidden"]])
    given = [replace(rule, choice=("kind", name)) for name, rule in (("a", one[0]), ("b", other[0]), ("c", rules()[0]))]
    found = [rule for rule in rules_of_adapters(given) if "lora_A" in rule.target]
    assert [rule.choice and rule.choice[1] for rule in found] == ["a", "b"]
    assert found[0].excludes(found[1])


def test_of_adapters_alone_a_module_may_have_none():
    a, b = rules_of_adapters(rules(tp=["cols", "heads"]))
    assert [rule.sources[0].dims for rule in (a, b)] == [("any", "hidden"), ("ffn", "any")]
    assert [(rule.tensor_parallel, rule.unit) for rule in (a, b)] == [("cols", "heads"), ("replicated", None)]
    assert a.choice == b.choice
    assert all(rule.may_be_absent and rule.is_adapter for rule in (a, b))


def test_without_the_sizes_of_the_base_neither_widths_nor_heads_are_known():
    for sized in rules_of_adapters(rules(tp=["cols", "heads"])):
        (source,) = sized.sources
        unknown = {"sources": (replace(source, dims=("any", "any")),), "unit": None}
        assert vars(without_sizes(sized)) == {**vars(sized), **unknown}


def test_a_rule_that_is_in_a_choice_already_is_not_adapted():
    given = [replace(rule, choice=("group", "dense")) for rule in rules()]
    assert list(rules_with_adapters(given)) == given


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.0.fc.lora_A.weight", "model.0.fc.lora_A.default.weight"),
        ("model.0.fc.lora_B.weight", "model.0.fc.lora_B.default.weight"),
        ("model.0.fc.lora_A.default.weight", "model.0.fc.lora_A.default.weight"),
        ("model.0.fc.weight", "model.0.fc.weight"),
        ("model.0.lora_A.weight.more", "model.0.lora_A.weight.more"),
    ],
)
def test_factors_have_one_canonical_name(name, canonical):
    assert canonical_factor(name) == canonical
    # As PEFT saves it.
    assert saved_factor(canonical) == canonical.replace(".default.", ".")
    assert canonical_factor(saved_factor(canonical)) == canonical


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("model.0.fc.lora_A.weight", ("model.0.fc", "A")),
        ("model.0.fc.lora_B.default.weight", ("model.0.fc", "B")),
        ("model.0.fc.lora_A.other.weight", None),
        ("model.0.fc.lora_C.weight", None),
        ("model.0.fc.lora_magnitude_vector.default.weight", None),
    ],
)
def test_a_factor_is_told_by_its_name(name, factor):
    assert factor_of(name) == factor
    assert belongs_to_adapter(name)
    assert module_of(name) == "model.0.fc"
    assert is_trained_otherwise(name) == (factor is None)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        # As modules in memory have them, and as PEFT 0.21 saves them.
        ("model.0.fc.lora_magnitude_vector", True),
        ("model.0.fc.lora_B.default.bias", True),
        ("model.0.fc.lora_B.second.weight", True),
        ("embed_tokens.lora_embedding_A.default", True),
        ("lm_head.modules_to_save.default.weight", True),
        ("embed_tokens.token_adapter.trainable_tokens_delta.default", True),
        ("embed_tokens.token_adapter.trainable_tokens_delta", True),
        # What they stand beside is of the base.
        ("lm_head.original_module.weight", False),
        ("embed_tokens.token_adapter.base_layer.weight", False),
        ("model.0.fc.base_layer.bias", False),
    ],
)
def test_what_was_trained_beside_the_factors_is_told_by_its_name(name, trained):
    assert is_trained_otherwise(name) == trained


def test_a_weight_of_an_adapted_module_is_that_of_the_plain_model():
    for name in ("model.0.fc.base_layer.weight", "model.0.fc.weight"):
        assert plain_name(name) == "model.0.fc.weight"
        assert factor_of(name) is None
        assert not belongs_to_adapter(name)


@pytest.mark.parametrize(
    ("own", "found"),
    [([], None), ([""], None), ([".default"], None), ([".default", ".other"], "other"), ([".b", ".a"], "a, b")],
)
def test_adapters_of_names_of_their_own_are_named(own, found):
    names = ["a.weight", *(f"m.lora_{letter}{each}.weight" for letter in "AB" for each in own)]
    problem = named_adapters_problem(names)
    assert (problem is None) == (found is None)
    assert found is None or f"({found})" in str(problem)
