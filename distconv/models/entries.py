"""A definition to be, and its entries: rules as they are written down, with what a person must decide.

Owns how those of weight and bias become one, and those of some layers alternatives. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distconv.models.definition_reader import TODO
from distconv.models.recognition import Written
from distconv.tensors.operators import RENAME


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A rule, with `TODO` where a person must decide; `remarks` are sentences for that person.

    `present`: the layers that have it, empty outside of layers.
    """

    target: str
    sources: tuple[tuple[str, tuple[str | int, ...]], ...]
    operator: tuple[str | int, ...] = (RENAME,)
    tp: tuple[str | int, ...] = ()
    stage: str = ""
    layers: str = ""
    present: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Alternatives by name, of which each layer has exactly one."""

    alternatives: Mapping[str, Sequence[Entry]]


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A definition to be, by its keys; `follows`: the definitions that gave precedents."""

    model_type: str
    dialect: str
    sizes: Mapping[str, Written]
    lists: Mapping[str, str]
    modalities: Mapping[str, str]
    experts: str | None
    predicting: str | None
    tied: Mapping[str, Any] | None
    rules: Mapping[str, Mapping[str, Sequence[Entry | Choice]]]
    ignored: Sequence[tuple[str, str]]
    copied: Sequence[tuple[str, str, str]]
    follows: Sequence[str]


def alternatives(entries: Sequence[Entry], layers: int) -> list[Entry | Choice]:
    """The rules of a section of so many layers: those of all, and alternatives of those that only some have."""
    everywhere = frozenset(range(layers))
    partial: dict[frozenset[int], list[Entry]] = {}
    kept: list[Entry | Choice] = []
    for entry in merged(entries):
        present = entry.present & everywhere
        if not entry.present or present == everywhere:
            kept.append(entry)
        else:
            partial.setdefault(present, []).append(entry)
    if not partial:
        return kept
    names = {present: _kind(found, present) for present, found in partial.items()}
    apart = sum(map(len, partial)) == len(frozenset().union(*partial)) and len(set(names.values())) == len(names)
    if apart:
        choices: dict[str, Sequence[Entry]] = {names[present]: found for present, found in partial.items()}
        if frozenset().union(*partial) != everywhere or len(partial) == 1:
            choices["none"] = []
        return [*kept, Choice(alternatives=choices)]
    return [*kept, *(Choice(alternatives={names[each]: found, "none": []}) for each, found in partial.items())]


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """The rules, those of a weight and its bias as one with `{weight,bias}`."""
    found: list[Entry] = []
    for entry in sorted(entries, key=lambda each: each.target.endswith("bias")):
        place = next((place for place, each in enumerate(found) if _is_bias_of(entry, each)), None)
        if place is None:
            found.append(entry)
            continue
        weight = found[place]
        both = tuple((_both(name), dims) for name, dims in weight.sources)
        remarks = tuple(dict.fromkeys((*weight.remarks, *entry.remarks)))
        found[place] = replace(weight, target=_both(weight.target), sources=both, remarks=remarks)
    return found


def _both(name: str) -> str:
    return name.removesuffix("weight") + "{weight,bias}"


def _is_bias_of(bias: Entry, weight: Entry) -> bool:
    """Whether a rule is what `{weight,bias}` makes of that of a weight."""
    if not weight.target.endswith("weight") or bias.target != weight.target.removesuffix("weight") + "bias":
        return False
    names = [name.removesuffix("weight") + "bias" for name, _ in weight.sources if name.endswith("weight")]
    alike = names == [name for name, _ in bias.sources] and [dims[:1] for _, dims in weight.sources] == [
        dims for _, dims in bias.sources
    ]
    cut = (
        bias.tp == weight.tp or (weight.tp in ((TODO,), ("replicated",)) and not bias.tp) or weight.tp[:1] == ("cols",)
    )
    where = (weight.stage, weight.layers, weight.present) == (bias.stage, bias.layers, bias.present)
    return alike and cut and where and bias.operator == weight.operator


def _kind(entries: Sequence[Entry], present: frozenset[int]) -> str:
    """A name for what only some layers have."""
    if any("expert" in name for each in entries for name, _ in each.sources):
        return "experts"
    if any("mlp" in each.target for each in entries):
        return "dense"
    return f"layers_from_{min(present, default=0)}"
