"""Names against rules: placeholders, the alternative that a layer uses, and what is said of leftovers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from distconv.models.names import Choices, Explanations, by_sources, experts_of, filled
from distconv.models.rules import Rule, SourcePattern
from distconv.models.sizes import Sizes
from tests.unit import toy


def test_placeholders_are_filled_where_there_is_a_number():
    name = "a.{layer}.b.{expert}.c.{item}"
    assert filled(name, 3, 12, 0) == "a.3.b.12.c.0"
    assert filled(name, 0, None, None) == "a.0.b.{expert}.c.{item}"
    assert filled("{layer}.{layer}", 7, 1, 2) == "7.7"


def rules(target: str) -> list[Rule]:
    return [rule for rule in toy.definition().rules if target in rule.target]


@pytest.mark.parametrize(("target", "experts"), [("experts.{expert}.fc1", range(toy.EXPERTS)), ("router", [None])])
def test_a_rule_for_experts_has_a_parameter_for_each(target, experts):
    definition = toy.definition()
    sizes = Sizes(definition.sizes, toy.config(), "config.json")
    (rule,) = rules(target)
    assert list(experts_of(rule, definition, sizes)) == list(experts)


def used(names: Collection[str], layer: int) -> set[str]:
    """The targets of the layer's feed-forward rules that are used if these tensors are stored."""
    index = toy.index()
    stored = {name: tensor for name, tensor in index.tensors.items() if name in names}
    choices = Choices(toy.definition().rules, by_sources(stored))
    return {rule.target.split("{layer}.")[1] for rule in toy.definition().rules if rule.choice is not None
            if choices.uses(rule, layer)}  # fmt: skip


DENSE = {"mlp.fc1.weight", "mlp.fc2.weight"}
EXPERTS = {"router.weight", "experts.{expert}.fc1.weight", "experts.{expert}.fc2.weight"}


def test_each_layer_uses_the_alternative_whose_sources_are_there():
    names = set(toy.shapes())
    assert (used(names, 0), used(names, 1)) == (DENSE, EXPERTS)


def test_among_incomplete_alternatives_the_one_of_which_most_is_there_is_meant():
    """So that what is said to be missing is what the user lacks."""
    assert used({"model.layers.1.router.weight", "model.layers.1.experts.0.up.weight"}, 1) == EXPERTS
    assert used({"model.layers.0.mlp.down.weight"}, 0) == DENSE


def test_a_complete_alternative_wins_over_a_larger_incomplete_one():
    names = {name for name in toy.shapes() if name.startswith("model.layers.1.") and not name.endswith("router.weight")}
    assert used(names, 1) == EXPERTS
    choices = Choices(toy.definition().rules, by_sources(toy.index({
        **{name: shape for name, shape in toy.shapes().items() if name in names},
        "model.layers.1.mlp.up.weight": (12, 16), "model.layers.1.mlp.down.weight": (16, 12),
    }).tensors))  # fmt: skip
    assert [choices.uses(rule, 1) for rule in rules("mlp.fc")] == [True, True]
    assert not any(choices.uses(rule, 1) for rule in rules("experts"))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"required", "other"}, "with"),
        ({"optional", "other"}, "without"),
        ({"required", "other", "another"}, "without"),
        ({"required", "optional", "other", "another"}, "without"),
    ],
)
def test_optional_sources_decide_nothing_of_alternatives(stored, expected):
    """An alternative is not incomplete without them, and is not there because of them."""
    (rule,) = rules("router")

    def made(choice: str, *names: str, optional: bool = False) -> list[Rule]:
        return [
            replace(rule, choice=("g", choice), optional=optional, sources=(SourcePattern(name=name, dims=(1,)),))
            for name in names
        ]

    alternatives = [*made("with", "required"), *made("with", "optional", optional=True)]
    alternatives += made("without", "other", *({"another"} & stored))
    if expected == "without" and "another" not in stored:
        alternatives += made("without", "missing")
    choices = Choices(alternatives, by_sources(stored))
    assert {each.choice[1] for each in alternatives if each.choice and choices.uses(each, None)} == {expected}


def test_alternatives_that_score_alike_are_told():
    alike = Choices(toy.definition().rules, lambda *_: (True, 1))
    clear = Choices(toy.definition().rules, by_sources(toy.shapes()))
    dense, experts, plain = rules("mlp.fc")[0], rules("experts")[0], rules("qkv")[0]
    assert sorted(alike.equals(dense, 0)) == sorted({dense.choice[1], experts.choice[1]})
    # The one that is used says so, once.
    assert alike.equals(experts, 0) == []
    assert [clear.equals(rule, 0) for rule in (dense, experts, plain)] == [[], [], []]


def test_a_rule_without_alternatives_is_always_used():
    assert all(Choices(toy.definition().rules, by_sources({})).uses(rule, 0) for rule in rules("qkv"))


def explanations(**reasons: str) -> Explanations:
    """With a reason for the rules of a modality, if there is one."""
    definition = toy.definition()
    sizes = Sizes(definition.sizes, toy.config(num_nextn_predict_layers=2), "config.json")
    return Explanations(definition, {rule: reasons.get(rule.modality) for rule in definition.rules}, sizes)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("visual.patch.weight", "not wanted"),
        ("visual.blocks.17.qkv.bias", "not wanted"),
        ("visual.blocks.x.qkv.bias", None),
        ("visual.patch.weight2", None),
        ("visualxpatch.weight", None),
        ("model.norm.weight", None),
        ("a.inv_freq", "rebuilt by the training side"),
        # Behind the three layers there are.
        ("model.layers.3.mtp.weight", "not trained"),
        ("model.layers.4.mtp.weight", "not trained"),
        ("model.layers.2.mtp.weight", None),
        ("model.layers.5.mtp.weight", None),
    ],
)
def test_what_is_left_out_on_purpose_has_its_reason(name, reason):
    assert explanations(vision="not wanted").reason(name) == reason


def test_what_is_left_over_fits_a_wanted_rule_or_none():
    found = explanations(vision="not wanted")
    assert found.fits("model.layers.99.q.weight")
    assert not found.fits("visual.patch.weight")
    assert found.problem("model.layers.99.q.weight").startswith("fitting a rule, but not the number of layers")
    assert found.problem("model.layers.99.z.weight") == "that no rule of model definition toy knows"


def test_without_a_wanted_rule_nothing_fits():
    found = explanations(vision="no", text="no")
    assert not found.fits("")
    assert not found.fits("model.norm.weight")
