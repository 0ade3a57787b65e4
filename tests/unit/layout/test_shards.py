"""Recipes are cut once, proved to lose and double nothing, and every size that does not divide is reported."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from distconv.errors import InputError, JobError
from distconv.layout import shards
from distconv.layout.layout import CompleteLayout
from distconv.layout.shards import Shards, cut_recipes
from distconv.models.bind import bind
from distconv.models.definition_parser import parse_definition
from distconv.models.parameters import Recipe
from distconv.models.sizes import Sizes
from distconv.tensors.cuts import TensorParallelRule, rows
from distconv.tensors.virtual import VirtualTensor, narrow
from tests.unit import toy


def layout(tp: int = 1, **modality_tp: int) -> CompleteLayout:
    return CompleteLayout(tp=tp, pp=1, vpp=1, ep=1, stages={}, modality_tp=modality_tp, placement="sequential")


def cut(found: CompleteLayout, **changes: Any) -> dict[Recipe, Shards]:
    return cut_recipes((parameter.recipe for parameter in toy.bound(**changes).parameters), found)


def test_a_recipe_is_cut_once_however_many_layers_share_it(monkeypatch):
    cuts: list[int] = []

    def counting(rule: TensorParallelRule) -> TensorParallelRule:
        return replace(rule, cut=lambda *given: (cuts.append(1), rule.cut(*given))[1])

    rules = {name: counting(rule) for name, rule in shards.TENSOR_PARALLEL_RULES.items()}
    monkeypatch.setattr(shards, "TENSOR_PARALLEL_RULES", rules)
    found = cut(layout(tp=2))
    assert len(cuts) == len(found)
    targets = Counter(recipe.rule.target for recipe in found)
    # Each expert is another part of the tensor that holds them all.
    packed = "text.layers.{layer}.experts.{expert}.fc2.weight"
    assert targets == {**dict.fromkeys(targets, 1), packed: toy.EXPERTS}


def test_a_recipe_has_a_shard_for_each_rank_of_its_modality_or_one_for_all():
    found = cut(layout(tp=2, vision=8))
    for modality, size in (("text", 2), ("vision", 8)):
        of_modality = [(recipe, pieces) for recipe, pieces in found.items() if recipe.rule.modality == modality]
        assert {len(pieces) for _, pieces in of_modality} == {1, size}
        for recipe, pieces in of_modality:
            assert (len(pieces) == 1) == (pieces[0].shape == recipe.tensor.shape)


def test_layers_of_two_element_types_are_two_recipes():
    binding = toy.bound(dtypes={"model.layers.1.norm.weight": "float32"})
    found = cut_recipes((parameter.recipe for parameter in binding.parameters), layout())
    norms = {recipe.tensor.dtype for recipe in found if recipe.rule.target == "text.layers.{layer}.norm.weight"}
    assert norms == {"bfloat16", "float32"}


def test_a_cut_through_a_head_or_group_is_refused_even_where_the_rows_divide():
    # Each group has 4 rows of q, 2 of k and 2 of v: 32 rows, which 8 divides.
    with pytest.raises(InputError) as caught:
        cut(layout(tp=8))
    (problem,) = [problem for problem in caught.value.problems if "groups" in problem]
    assert problem == (
        "layout.tp=8: does not divide groups (4, num_key_value_heads in config.json): "
        "text attention is cut at whole heads"
    )


def test_every_size_that_does_not_divide_is_reported_once_with_its_key_rule_and_sizes():
    with pytest.raises(InputError) as caught:
        cut(layout(tp=8, vision=3))
    made_of = "does not divide into 8 equal pieces; made of"
    mlp, ffn = "mlp (12, intermediate_size in config.json)", "ffn (20, moe_intermediate_size in config.json)"
    assert caught.value.problems == [
        (
            "layout.modality_tp.vision=3: does not divide vision_heads (8, vision_config.heads in config.json): "
            "vision attention is cut at whole heads"
        ),
        (
            "layout.modality_tp.vision=3: vision.projector.weight, tp rule rows: dim 0 of shape [16, 24] does not "
            "divide into 3 equal pieces; made of hidden (16, hidden_size in config.json)"
        ),
        (
            "layout.tp=8: does not divide groups (4, num_key_value_heads in config.json): "
            "text attention is cut at whole heads"
        ),
        f"layout.tp=8: text.layers.{{layer}}.mlp.fc1.weight, tp rule rows: dim 0 of shape [12, 16] {made_of} {mlp}",
        f"layout.tp=8: text.layers.{{layer}}.mlp.fc2.weight, tp rule cols: dim 1 of shape [16, 12] {made_of} {mlp}",
        (
            "layout.tp=8: text.layers.{layer}.experts.{expert}.fc1.weight, tp rule glu: "
            f"dim 0 of shape [20, 16] {made_of} {ffn}"
        ),
        # The last of three dims of a source of which the first is the experts, exchanged with the one before.
        (
            "layout.tp=8: text.layers.{layer}.experts.{expert}.fc2.weight, tp rule cols: "
            f"dim 1 of shape [16, 20] {made_of} {ffn}"
        ),
        "layout.modality_tp.vision: sizes that fit all of this model: 1, 2, 4, 8",
        "layout.tp: sizes that fit all of this model: 1, 2, 4",
    ]


@pytest.mark.parametrize("modality_tp", [{}, {"vision": 8}])
def test_the_sizes_that_are_said_to_fit_are_all_that_do(modality_tp):
    with pytest.raises(InputError) as caught:
        cut(layout(tp=7, **modality_tp))
    (line,) = [each for each in caught.value.problems if "sizes that fit" in each]
    said = [int(each) for each in line.partition(": sizes that fit all of this model: ")[2].split(", ")]
    fitting = []
    for size in range(1, 33):
        try:
            cut(layout(tp=size, **modality_tp))
        except InputError:
            continue
        fitting.append(size)
    assert said == fitting


def test_a_size_has_to_divide_the_units_of_a_cut_or_else_its_equal_parts():
    recipes = [each.recipe for each in toy.bound().parameters]
    cuts = {"rows": 1, "cols": 1, "glu": 2}
    seen = set()
    for recipe in recipes:
        name = recipe.rule.tensor_parallel
        rule = shards.TENSOR_PARALLEL_RULES[name]
        if name in cuts and (dim := rule.dim_of(recipe.tensor.shape)) is not None:
            seen.add(name)
            assert shards._to_divide(recipe, rule, None) == recipe.tensor.shape[dim] // cuts[name]
            assert shards._to_divide(recipe, rule, 5) == 5
            assert shards._to_divide(recipe, replace(rule, uneven=True), 5) == 0
    assert seen == cuts.keys()


def test_sizes_that_are_joined_along_the_cut_dim_are_all_named():
    content = toy.content()
    (qkv,) = [rule for rule in content["rules"]["text"]["attention"] if rule["target"].endswith("qkv.{weight,bias}")]
    qkv["tp"] = "rows"
    definition = parse_definition("toy", content)
    sizes = Sizes(definition.sizes, toy.config(), "/hf/config.json")
    recipes = [each.recipe for each in bind(definition, sizes, toy.index(), lambda _: None).parameters]
    with pytest.raises(InputError) as caught:
        cut_recipes(recipes, layout(tp=3))
    problems = [problem for problem in caught.value.problems if "qkv.weight" in problem]
    (problem,) = [problem for problem in problems if problem.startswith("layout.tp")]
    assert problem.endswith("; made of hidden (16, hidden_size in config.json) and kv_rows (8)")


def test_an_uneven_rule_may_divide_anything():
    found = cut(layout(tp=4))
    (pieces,) = [pieces for recipe, pieces in found.items() if recipe.rule.target == "text.embedding.weight"]
    assert [piece.shape for piece in pieces] == [(8, 16), (8, 16), (7, 16), (7, 16)]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda tensor, size, _: [narrow(tensor, 0, 0, 1)] * size,
            r"visual\.blocks\.\{layer\}\.proj\.weight: \d+ elements would be in no shard",
        ),
        (
            lambda tensor, size, _: [replace(tensor, copies=tensor.copies * 2)] * size,
            r"vision\.layers\.\{layer\}\.proj\.weight: two sources for the box",
        ),
    ],
)
def test_a_rule_that_loses_or_doubles_elements_is_a_defect_found_before_writing(monkeypatch, rule, message):
    rules = {**shards.TENSOR_PARALLEL_RULES, "cols": TensorParallelRule(cut=rule)}
    monkeypatch.setattr(shards, "TENSOR_PARALLEL_RULES", rules)
    with pytest.raises(JobError, match=message):
        cut(layout(tp=2))


@pytest.mark.parametrize("too_many", [1, -1])
def test_a_loss_is_exactly_what_the_recipe_does_not_use(too_many):
    """One that is less than that is a defect as well: something is in a shard that has no place there."""
    recipe = toy.bound().parameters[0].recipe
    assert cut_recipes([recipe], layout(tp=2))
    with pytest.raises(JobError, match=rf": {-too_many} elements would be in no shard; nothing has been written: "):
        cut_recipes([replace(recipe, unused=recipe.unused + too_many)], layout(tp=2))


def of_qkv() -> Recipe:
    (recipe,) = {each.recipe for each in toy.bound().parameters if each.recipe.rule.target.endswith("r}.qkv.weight")
                 and each.recipe.rule.modality == "text"}  # fmt: skip
    return recipe


@pytest.mark.parametrize("operand", range(3))
@pytest.mark.parametrize("number", range(4))
def test_a_loss_is_found_in_whichever_shard_and_source(monkeypatch, operand, number):
    def losing(tensor: VirtualTensor, size: int, unit: int | None) -> list[VirtualTensor]:
        found = rows(tensor, size, unit)
        kept = tuple(copy for copy in found[number].copies if copy.operand != operand)
        return [replace(each, copies=kept) if each is found[number] else each for each in found]

    rules = {**shards.TENSOR_PARALLEL_RULES, "rows": TensorParallelRule(cut=losing, dim=0)}
    monkeypatch.setattr(shards, "TENSOR_PARALLEL_RULES", rules)
    lost = toy.HIDDEN * (toy.HIDDEN if operand == 0 else toy.HIDDEN // toy.HEADS * toy.GROUPS) // 4
    with pytest.raises(JobError, match=rf": {lost} elements would be in no shard"):
        cut_recipes([of_qkv()], layout(tp=4))


@pytest.mark.parametrize("number", range(4))
def test_an_element_that_is_written_twice_is_found_in_whichever_shard(monkeypatch, number):
    def doubling(tensor: VirtualTensor, size: int, unit: int | None) -> list[VirtualTensor]:
        found = rows(tensor, size, unit)
        return [replace(each, copies=each.copies * 2) if each is found[number] else each for each in found]

    rules = {**shards.TENSOR_PARALLEL_RULES, "rows": TensorParallelRule(cut=doubling, dim=0)}
    monkeypatch.setattr(shards, "TENSOR_PARALLEL_RULES", rules)
    with pytest.raises(JobError, match=r"text\.layers\.\{layer\}\.qkv\.weight: two sources for the box"):
        cut_recipes([of_qkv()], layout(tp=4))
