"""The shapes of published tensors that config.json does not tell follow from the parameter that they are made into."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.errors import InputError
from distconv.formats.megatron.expected import source_shapes
from distconv.models.rules import Rule, parse_rules
from distconv.models.sizes import Sizes, SizeSpec
from distconv.tensors.operators import OPERATORS
from distconv.tensors.virtual import select, whole

SIZES = {"heads": 6, "groups": 2, "width": 8, "experts": 4}


def sizes(**given: int) -> Sizes:
    return Sizes({name: SizeSpec.parse([name]) for name in given}, given, "config.json")


def rule(operator: Any, *sources: list[Any], target: str = "a.weight") -> Rule:
    entry = {
        "target": target,
        "sources": [list(each) for each in sources],
        "operator": operator,
        "tp": "replicated",
        "stage": "first",
    }
    (found,) = parse_rules("text", "section", 0, entry, SIZES, ())
    return found


EXPERTS = "a.{expert}.weight"


@pytest.mark.parametrize(
    ("found", "full", "shapes"),
    [
        (rule("rename", ["x", "any", "width"]), (5, 8), [(5, 8)]),
        (rule("rename", ["x", "any", "any", 3]), (5, 7, 3), [(5, 7, 3)]),
        (rule("rename", ["x", "heads", "width"]), None, [(6, 8)]),
        (rule("transpose", ["x", "any", "width"]), (8, 5), [(5, 8)]),
        (rule("transpose", ["x", "experts", "any", "any"], target=EXPERTS), (8, 5), [(4, 5, 8)]),
        (rule("concat", ["x", "any", "width"], ["y", "any", "width"]), (10, 8), [(5, 8), (5, 8)]),
        (rule("concat", ["x", "heads", "any"], ["y", "any", "any"]), (10, 8), [(6, 8), (4, 8)]),
        (
            rule(["qkv_group", "groups"], *(["x", "any", "width"] for _ in range(3))),
            (30, 8),
            [(18, 8), (6, 8), (6, 8)],
        ),
        (rule(["qkv_group", "groups"], ["x", 18], ["y", "any"], ["z", "any"]), (30,), [(18,), (6,), (6,)]),
        (rule(["qzv_group", "groups"], ["x", "any"], ["y", "any"]), (30,), [(18,), (6,)]),
        (rule(["qzv_group", "groups"], ["x", 18], ["y", "any"]), (30,), [(18,), (6,)]),
        (rule(["qkv_heads", "heads"], ["x", "any", "width"]), (18, 8), [(18, 8)]),
    ],
)
def test_what_is_not_known_follows_from_the_parameter(found, full, shapes):
    assert source_shapes(found, full, sizes(**SIZES)) == tuple(shapes)
    operands = [whole("uint8", shape, number) for number, shape in enumerate(shapes)]
    if found.packs_experts:
        operands = [select(operand, 0, 0) for operand in operands]
    made = OPERATORS[found.operator].apply(*operands, *(SIZES[str(size)] for size in found.operator_sizes))
    assert full is None or made.shape == full


@pytest.mark.parametrize(
    ("found", "full"),
    [
        (rule("rename", ["x", "any", "width"]), None),
        (rule("rename", ["x", "any", "width"]), (5,)),
        (rule("concat", ["x", "any"], ["y", "any"]), (5,)),
        (rule("concat", ["x", "heads"], ["y", "any"]), (6,)),
        (rule(["qkv_group", "groups"], ["x", "any"], ["y", "any"], ["z", "any"]), (32,)),
    ],
)
def test_what_does_not_follow_is_not_guessed(found, full):
    assert source_shapes(found, full, sizes(**SIZES)) is None


def test_a_definition_that_does_not_say_how_many_heads_there_are_is_told_so():
    found = rule(["qkv_group", "groups"], ["x", "any"], ["y", "any"], ["z", "any"])
    with pytest.raises(InputError, match="needs the number of attention heads as a size named heads, or sizes instead"):
        source_shapes(found, (30,), sizes(groups=2))
