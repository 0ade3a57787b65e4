"""Several parameters as one: rows of the first, then of the others; and each of them again."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from distconv.errors import InputError
from distconv.models.joining import Join, join_parameters, join_rules, part_parameters
from distconv.models.parameters import Parameter, Recipe
from distconv.models.rules import Rule, parse_rules
from distconv.models.sizes import Sizes, SizeSpec
from distconv.tensors.stored import NOWHERE, StoredTensor
from distconv.tensors.virtual import Copy, whole

JOIN = Join(target="l.{layer}.all.weight", parts=("l.{layer}.a.weight", "l.{layer}.b.weight"))
NUMBERS = {"rows": 2, "more": 3, "hidden": 4}
SIZES = Sizes({name: SizeSpec(path=(name,)) for name in NUMBERS}, NUMBERS, "")


def rule(part: str, rows: str, **changes: object) -> Rule:
    entry = {
        "target": f"l.{{layer}}.{part}.weight",
        "sources": [[f"m.{{layer}}.{part}.weight", rows, "hidden"]],
        "tp": "rows",
        **changes,
    }
    return next(parse_rules("text", "attention", 0, entry, NUMBERS, ()))


A, B, OTHER = rule("a", "rows"), rule("b", "more"), rule("other", "rows")


@cache
def recipe_of(of: Rule, rows: int, dtype: str) -> Recipe:
    tensor = whole(dtype, (rows, 4))
    return Recipe(rule=of, tensor=tensor, source_shapes=(tensor.shape,), unit=None, dims=("rows",), unused=rows)


def parameter(of: Rule, rows: int, layer: int, dtype: str = "bfloat16") -> Parameter:
    stored = StoredTensor(f"{of.target}{layer}", dtype, (rows, 4), NOWHERE, 0)
    return Parameter(recipe_of(of, rows, dtype), (stored,), layer)


def test_a_joined_rule_takes_the_place_of_its_first_part():
    rules, parts = join_rules([OTHER, B, A], [JOIN])
    assert [each.target for each in rules] == [OTHER.target, JOIN.target]
    joined = rules[1]
    assert parts == {joined: (A, B)}
    assert joined.source_names == ("m.{layer}.a.weight", "m.{layer}.b.weight")
    assert (joined.operator, joined.tensor_parallel, joined.unit) == ("concat", "replicated", None)


@pytest.mark.parametrize(
    "rules", [[A, OTHER], [B], [A, replace(B, optional=True)], [A, replace(B, operator="transpose")]]
)
def test_what_has_not_all_parts_as_they_are_published_stays(rules):
    assert join_rules(rules, [JOIN]) == (rules, {})


def test_parameters_of_a_layer_are_joined_and_parted_again():
    given = [
        parameter(OTHER, 1, 0),
        *(parameter(each, rows, layer) for layer in (0, 1) for each, rows in ((A, 2), (B, 3))),
    ]
    other, first, second = join_parameters(given, [JOIN])
    assert other is given[0]
    assert first.recipe is second.recipe
    assert (second.layer, [each.name for each in second.sources]) == (1, ["l.{layer}.a.weight1", "l.{layer}.b.weight1"])
    recipe = first.recipe
    assert recipe.tensor.copies == (Copy(0, (0, 0), (0, 0), (2, 4), (0, 1)), Copy(1, (0, 0), (2, 0), (3, 4), (0, 1)))
    assert (recipe.source_shapes, recipe.unused) == (((2, 4), (3, 4)), 5)

    a, b = part_parameters(first, (A, B), SIZES)
    assert (a.recipe.rule, b.recipe.rule) == (A, B)
    assert a.recipe.tensor == whole("bfloat16", (2, 4))
    assert b.recipe.tensor == whole("bfloat16", (3, 4), 1)
    assert (a.recipe.unused, b.recipe.unused) == (5 + 12, 5 + 8)
    assert a.sources == b.sources == first.sources


def test_a_lone_part_stays():
    given = [parameter(A, 2, 0), parameter(B, 3, 1)]
    assert join_parameters(given, [JOIN]) == given


def test_parts_of_two_element_types_are_refused():
    with pytest.raises(InputError, match=r"l\.\{layer\}\.b\.weight are one parameter .* but are bfloat16 and float32"):
        join_parameters([parameter(A, 2, 0), parameter(B, 3, 0, "float32")], [JOIN])
