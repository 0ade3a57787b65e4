"""Parameters that a dialect has as one: the rows of the first, then those of the others, whole on every rank.

Owns the joined rule, and the way of parameters there and back. Never sees a layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.models.parameters import Parameter, Recipe
from distconv.models.predicting import inside_of, unnumbered, with_number
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes
from distconv.tensors.compose import renumbered
from distconv.tensors.operators import CONCAT, OPERATORS
from distconv.tensors.virtual import concat, narrow

Choice = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Join:
    """The target of a joined parameter, and those of its parts, in the order of their rows."""

    target: str
    parts: tuple[str, ...]

    def inside(self) -> Join | None:
        """The same in layers that predict further tokens; `None` where it is not of a layer."""
        target, *parts = (inside_of(each) for each in (self.target, *self.parts))
        known = [each for each in parts if each is not None]
        return Join(target=target, parts=tuple(known)) if target is not None and len(known) == len(parts) else None


def join_rules(rules: Sequence[Rule], joins: Sequence[Join]) -> tuple[list[Rule], Mapping[Rule, tuple[Rule, ...]]]:
    """The rules with joined ones in place of their parts, and the parts of each.

    A part that not all alternatives of a layer join with others stays in those that do not.
    """
    parts: dict[Rule, tuple[Rule, ...]] = {}
    taken: dict[Rule, set[Choice | None]] = {}
    firsts: dict[Rule, list[Rule]] = {}
    for first in rules:
        general, number = unnumbered(first.target)
        for join in (each for each in joins if each.parts[0] == general):
            names = [with_number(name, number) for name in join.parts[1:]]
            others = [
                next((rule for rule in rules if rule.target == name and not rule.excludes(first)), None)
                for name in names
            ]
            found = (first, *(each for each in others if each is not None))
            if len(found) == len(join.parts) and all(map(_can_be_joined, found)):
                rule = _joined(found, with_number(join.target, number))
                parts[rule] = found
                firsts.setdefault(first, []).append(rule)
                for each in found:
                    taken.setdefault(each, set()).add(rule.choice)
    result: list[Rule] = []
    for rule in rules:
        result += firsts.get(rule, [])
        result += _left(rule, taken[rule], rules) if rule in taken else [rule]
    return result, parts


def join_parameters(parameters: Sequence[Parameter], joins: Sequence[Join]) -> list[Parameter]:
    """The parameters with joined ones in place of their parts, where all parts of one are there.

    Raises:
        InputError: the parts are of different element types.
    """
    if not joins:
        return list(parameters)
    found = {(each.recipe.rule.target, each.layer): each for each in parameters}
    recipes: dict[tuple[Recipe, ...], Recipe] = {}
    taken: dict[Parameter, Parameter | None] = {}
    for first in parameters:
        general, number = unnumbered(first.recipe.rule.target)
        for join in (each for each in joins if each.parts[0] == general):
            parts = [found.get((with_number(name, number), first.layer)) for name in join.parts]
            present = [each for each in parts if each is not None]
            if len(present) < len(parts):
                continue
            key = tuple(each.recipe for each in present)
            if key not in recipes:
                recipes[key] = _joined_recipe(key, with_number(join.target, number))
            sources = tuple(source for each in present for source in each.sources)
            taken |= dict.fromkeys(present)
            taken[first] = Parameter(recipes[key], sources, first.layer)
    named = (taken.get(each, each) for each in parameters)
    return [each for each in named if each is not None]


def part_parameters(joined: Parameter, parts: Sequence[Rule], sizes: Sizes) -> Iterator[Parameter]:
    """The parts of a joined parameter, each over all that it is made of."""
    tensor, start = joined.recipe.tensor, 0
    for rule in parts:
        rows = sizes.get(rule.sources[0].dims[0])
        part = narrow(tensor, 0, start, rows)
        unused = joined.recipe.unused + tensor.elements - part.elements
        yield replace(joined, recipe=replace(joined.recipe, rule=rule, tensor=part, unused=unused))
        start += rows


def _can_be_joined(rule: Rule) -> bool:
    return OPERATORS[rule.operator].is_identity and len(rule.sources) == 1 and not rule.optional


def _joined(parts: Sequence[Rule], target: str) -> Rule:
    return replace(
        parts[0],
        target=target,
        sources=tuple(source for each in parts for source in each.sources),
        operator=CONCAT,
        tensor_parallel="replicated",
        unit=None,
        choice=next((each.choice for each in parts if each.choice is not None), None),
    )


def _left(rule: Rule, taken: set[Choice | None], rules: Sequence[Rule]) -> Iterator[Rule]:
    """A rule in the alternatives that join it with nothing."""
    if rule.choice is not None or None in taken:
        return
    groups = {choice[0] for choice in taken if choice is not None}
    alternatives = dict.fromkeys(each.choice for each in rules if each.choice is not None and each.choice[0] in groups)
    yield from (replace(rule, choice=choice) for choice in alternatives if choice not in taken)


def _joined_recipe(parts: Sequence[Recipe], target: str) -> Recipe:
    operands, tensors = 0, []
    for each in parts:
        tensors.append(renumbered(each.tensor, operands))
        operands += len(each.source_shapes)
    if len(types := {each.dtype for each in tensors}) > 1:
        made_of = " and ".join(each.rule.target for each in parts)
        raise InputError(
            f"{target}: {made_of} are one parameter in this dialect, but are {' and '.join(sorted(types))}; give "
            "another dialect"
        )
    return Recipe(
        rule=_joined([each.rule for each in parts], target),
        tensor=concat(tensors),
        source_shapes=tuple(shape for each in parts for shape in each.source_shapes),
        unit=None,
        dims=tuple(dict.fromkeys(dim for each in parts for dim in each.dims)),
        unused=sum(each.unused for each in parts),
    )
