"""Layers that predict further tokens (MTP): such a layer is one of the language model, with rules of its own beside.

Owns `{next}`, which counts these layers: from 0 in targets, and from the number of the model's layers in published
names. Derives the rules of the layer inside from those of the model's layers, and the names from those that dialects
exchange there, so that neither is said twice. Never sees a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from distconv.models.rules import TEXT, Rule

# The section of the rules of these layers.
PREDICTING = "mtp"
_NEXT, _LAYER = "{next}", "{layer}"
# In the target of a layer, and of the layer inside of one that predicts.
_OF_LAYER, _INSIDE = "decoder.layers.{layer}.", "mtp.layers.{next}.transformer_layer."
_NUMBERED = re.compile(r"(?<![^.])mtp\.layers\.(\d+)\.")


def rules_of_predicting(rules: Sequence[Rule]) -> Iterator[Rule]:
    """The rules, those of layers that predict as alternatives of which a checkpoint has one, or none at all.

    Where layers of the model are of several kinds, there is an alternative for each combination of them.
    """
    inside = [_inside(rule) for rule in rules if rule.modality == TEXT and _OF_LAYER in rule.target]
    always = [*(rule for rule in rules if rule.section == PREDICTING), *(each for each in inside if not each.choice)]
    kinds: dict[str, dict[str, list[Rule]]] = {}
    for rule in inside:
        if rule.choice is not None:
            group, name = rule.choice
            kinds.setdefault(group, {}).setdefault(name, []).append(rule)
    yield from (rule for rule in rules if rule.section != PREDICTING)
    for names in product(*kinds.values()):
        chosen = [rule for name, group in zip(names, kinds.values(), strict=True) for rule in group[name]]
        choice = (f"{TEXT}.{PREDICTING}", " and ".join(names) or PREDICTING)
        yield from (replace(rule, choice=choice, may_be_absent=True) for rule in (*always, *chosen))


def numbered(rule: Rule, layers: int, count: int) -> Iterable[Rule]:
    """The rule for each of `count` layers that predict, of a model with `layers` layers; as it is if it is for none."""
    if _NEXT not in rule.target:
        return (rule,)
    return (
        replace(
            rule,
            target=rule.target.replace(_NEXT, str(number)),
            sources=tuple(replace(each, name=each.name.replace(_NEXT, str(layers + number))) for each in rule.sources),
        )
        for number in range(count)
    )


def published_numbers(name: str, layers: int, count: int) -> Iterable[str]:
    """The published name for each of `count` layers that predict; as it is if it is not of one."""
    return [name.replace(_NEXT, str(layers + number)) for number in range(count)] if _NEXT in name else [name]


def unnumbered(target: str) -> tuple[str, str]:
    """A target with `{next}` in place of the number of a layer that predicts, and the number."""
    match = _NUMBERED.search(target)
    if match is None:
        return target, _NEXT
    return f"{target[: match.start(1)]}{_NEXT}{target[match.end(1) :]}", match[1]


def with_number(target: str, number: str) -> str:
    """The inverse of `unnumbered`."""
    return target.replace(_NEXT, number)


def inside_of(beginning: str) -> str | None:
    """The beginning of a target of a layer as that of the layer inside of one that predicts; `None` for another."""
    return beginning.replace(_OF_LAYER, _INSIDE) if _OF_LAYER in beginning else None


def _inside(rule: Rule) -> Rule:
    return replace(
        rule,
        section=PREDICTING,
        target=rule.target.replace(_OF_LAYER, _INSIDE),
        sources=tuple(replace(each, name=each.name.replace(_LAYER, _NEXT)) for each in rule.sources),
        stage="last",
    )
