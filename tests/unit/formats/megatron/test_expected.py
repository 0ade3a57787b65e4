"""The shapes of published tensors that config.json does not tell follow from the parameter that they are made into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from distconv.formats.megatron.contents import Contents
from distconv.formats.megatron.expected import _by_parameters, source_shapes
from distconv.models.names import Choices
from distconv.models.rules import Rule, parse_rules
from distconv.models.sizes import Sizes, SizeSpec
from distconv.tensors.operators import OPERATORS, RowsUnknownError
from distconv.tensors.virtual import select, whole
from tests.unit import toy
from tests.unit.toy_megatron import bound, layout, source

SIZES = {"heads": 6, "groups": 2, "width": 8, "experts": 4}


def sizes(**given: int) -> Sizes:
    return Sizes({name: SizeSpec.parse([name]) for name in given}, given, "config.json")


def rule(
    operator: Any, *sources: list[Any], target: str = "a.weight", cut: str = "replicated", modality: str = "text"
) -> Rule:
    entry = {
        "target": target,
        "sources": [list(each) for each in sources],
        "operator": operator,
        "tp": cut,
        "stage": "first",
    }
    (found,) = parse_rules(modality, "section", 0, entry, SIZES, ())
    return found


def check_made(found: Rule, shapes: Sequence[tuple[int, ...]], full: tuple[int, ...]) -> None:
    """The sources of these shapes are made into a parameter of that shape."""
    operands = [whole("uint8", shape, number) for number, shape in enumerate(shapes)]
    if found.packs_experts:
        operands = [select(operand, 0, 0) for operand in operands]
    made = OPERATORS[found.operator].apply(*operands, *(SIZES[str(size)] for size in found.operator_sizes))
    assert made.shape == full


EXPERTS = "a.{expert}.weight"


@pytest.mark.parametrize(
    ("found", "full", "shapes"),
    [
        (rule("rename", ["x", "any", "width"]), (5, 8), [(5, 8)]),
        (rule("rename", ["x", "any", "any", 3]), (5, 7, 3), [(5, 7, 3)]),
        (rule("transpose", ["x", "any", "width"]), (8, 5), [(5, 8)]),
        (rule("transpose", ["x", "experts", "any", "any"], target=EXPERTS), (8, 5), [(4, 5, 8)]),
        # The cut says that they are equal.
        (rule("concat", ["x", "any", "width"], ["y", "any", "width"], cut="glu"), (10, 8), [(5, 8), (5, 8)]),
        (rule("concat", *([name, "any"] for name in "xyz"), cut="rows3"), (12,), [(4,), (4,), (4,)]),
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
    check_made(found, shapes, full)


def test_sizes_of_the_configuration_need_no_parameter():
    found = rule("concat", ["x", "heads", "width"], ["y", "groups", "width"])
    assert source_shapes(found, None, sizes(**SIZES)) == ((6, 8), (2, 8))


def qkv(modality: str = "text") -> Rule:
    """Attention of which config.json does not tell the rows."""
    return rule(["qkv_group", "groups"], ["x", "any"], ["y", "any"], ["z", "any"], modality=modality)


@pytest.mark.parametrize(
    ("found", "full", "reference", "shapes"),
    [
        (rule("concat", ["x", "any", "width"], ["y", "any", "any"]), (12, 8), [(8, 8), (4, 8)], [(8, 8), (4, 8)]),
        # One that is told leaves the rest to the other.
        (rule("concat", ["x", "any"], ["y", "any"]), (12,), [None, (4,)], [(8,), (4,)]),
        (rule("concat", ["x", "any"], ["y", "any"], ["z", "groups"]), (12,), [(7,), None, None], [(7,), (3,), (2,)]),
        # Packed experts have their number before the rows.
        (
            rule("concat", ["x", "experts", "any", 3], ["y", "experts", "any", 3], target=EXPERTS),
            (12, 3),
            [(4, 8, 3), (4, 4, 3)],
            [(4, 8, 3), (4, 4, 3)],
        ),
        # Heads may be wider in q than in k and v, and encoders have numbers of heads of their own.
        (qkv(), (30,), [(26,), (2,), (2,)], [(26,), (2,), (2,)]),
        (qkv(), (30,), [(26,), None, None], [(26,), (2,), (2,)]),
        (
            qkv("vision"),
            (30,),
            [None, None, (2,)],
            [(26,), (2,), (2,)],
        ),
        (rule(["qzv_group", "groups"], ["x", "any"], ["y", "any"]), (30,), [None, (2,)], [(26,), (2,)]),
        # What the configuration or the parameter says is not asked of the reference.
        (rule("concat", ["x", "heads"], ["y", "any"]), (10,), [(7,), None], [(6,), (4,)]),
        (rule("rename", ["x", "any"]), (5,), [(7,)], [(5,)]),
    ],
)
def test_what_neither_tells_follows_from_the_reference(found, full, reference, shapes):
    assert source_shapes(found, full, sizes(**SIZES), reference) == tuple(shapes)
    check_made(found, shapes, full)


@pytest.mark.parametrize(
    ("found", "full", "reference", "message"),
    [
        (rule("rename", ["x", "any", "width"]), None, [], "no file holds it"),
        (rule("rename", ["x", "any", "width"]), (5,), [], r"shape \[5\] does not fit sources of 2 dims"),
        (rule("concat", ["x", "heads"], ["y", "any"]), (6,), [], r"sources of 6 \+ 0 rows do not make 6"),
        (rule("concat", ["x", "any"], ["y", "any"], cut="glu"), (5,), [], r"sources of 2 \+ 2 rows do not make 5"),
        (rule("concat", ["x", "any"], ["y", "any"]), (12,), [(8,), (6,)], r"sources of 8 \+ 6 rows do not make 12"),
        (rule("concat", ["x", "any"], ["y", "any"]), (12,), [(13,), None], r"sources of 13 \+ -1 rows do not make 12"),
        (qkv(), (32,), [], "32 rows do not divide into 10 equal parts"),
        (
            rule(["qkv_group", "groups"], ["x", "width"], ["y", "any"], ["z", "any"]),
            (15,),
            [],
            "7 rows do not divide into 2 equal parts",
        ),
        (
            qkv(),
            (30,),
            [(18,), (6,), (5,)],
            r"18 \+ 6 \+ 5 rows do not make 30",
        ),
        (rule(["qzv_group", "groups"], ["x", "any"], ["y", 15]), (30,), [], r"0 \+ 15 \+ 15 rows do not make 30"),
    ],
)
def test_what_contradicts_is_refused(found, full, reference, message):
    with pytest.raises(ValueError, match=message) as caught:
        source_shapes(found, full, sizes(**SIZES), reference)
    assert not isinstance(caught.value, RowsUnknownError)


@pytest.mark.parametrize(
    "found",
    [
        rule("concat", ["x", "any"], ["y", "any"]),
        rule("concat", ["x", "any"], ["y", "any"], ["z", "heads"]),
        # Of equal parts there are two, of sources three.
        rule("concat", ["x", "any"], ["y", "any"], ["z", "any"], cut="glu"),
        qkv("vision"),
        rule(["qzv_group", "groups"], ["x", "any"], ["y", "any"], modality="audio"),
        rule("rename", ["x", "any", 30], target=EXPERTS),
    ],
)
@pytest.mark.parametrize("reference", ["none", "of names alone", "of another model"])
def test_what_does_not_follow_is_never_shared(found, reference):
    """`heads` are those of the language model."""
    given = {"none": [], "of names alone": [None] * len(found.sources), "of another model": [(1, 2, 3)] * 3}[reference]
    with pytest.raises(RowsUnknownError, match="sizes instead of any"):
        source_shapes(found, (30,), sizes(**SIZES), given[: len(found.sources)])


def test_a_definition_that_does_not_say_how_many_heads_there_are_is_told_so():
    found = qkv()
    with pytest.raises(RowsUnknownError, match="the number of attention heads as a size named heads"):
        source_shapes(found, (30,), sizes(groups=2))


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"required", "other"}, "with"),
        ({"optional", "other"}, "without"),
        ({"required", "optional", "other"}, "with"),
    ],
)
def test_optional_parameters_make_no_alternative_incomplete_or_complete(held, expected):
    def made(choice: str, target: str, *, optional: bool = False) -> Rule:
        return replace(rule("rename", ["x", 3], target=target), choice=("g", choice), optional=optional)

    rules = [made("with", "required"), made("with", "optional", optional=True), made("without", "other")]
    contents = Contents(pieces={(target, None, None): {} for target in held}, examples={})
    choices = Choices(rules, _by_parameters(contents, ()))
    assert {each.choice[1] for each in rules if each.choice and choices.uses(each, None)} == {expected}


def test_layers_of_one_rule_may_be_of_different_sizes():
    """Where the definition says that they may be of any: the files tell the size of each."""
    model = toy.content()
    norm = model["rules"]["text"]["attention"][0]
    norm["sources"] = [[norm["sources"][0][0], "any"]]
    shapes = toy.shapes() | {"model.layers.1.norm.weight": (toy.HIDDEN - 3,)}
    found = bound(source(layout(tp=2), shapes=shapes, model=model), model=model)
    sizes_of = {
        each.name: each.recipe.tensor.shape for each in found.parameters.parameters if ".norm.weight" in each.name
    }
    assert sizes_of == {
        f"text.layers.{layer}.norm.weight": shapes[f"model.layers.{layer}.norm.weight"] for layer in range(toy.LAYERS)
    }
