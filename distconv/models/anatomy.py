"""The anatomy of a checkpoint that no definition knows: its layers by modality, and what is beside them.

Owns which numbered modules are the layers of a modality, those of a list, those that predict further tokens, or none of
the model's. Sees names, shapes and a configuration, never tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distconv.models.definition import Ignored
from distconv.models.definition_reader import TODO
from distconv.models.grouping import Group, Shape, beyond, grouped, main_stacks, modality_of
from distconv.models.names import matching
from distconv.models.recognition import Recognition
from distconv.models.rules import TEXT

FURTHER = "num_nextn_predict_layers"
# In the module of no layers, whatever it is called.
_ANYWHERE = "*."
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What a checkpoint consists of: groups of tensors, and the modules that hold layers.

    `main`: the stack of each modality that is its layers, `counts` their number. `further`: the names of groups that
    only layers have which predict further tokens, `predicting` the number of these. `items`: of stacks that a list of
    layers counts, name and field of the list. `left_out`: patterns of what is in no group, with reasons.
    """

    groups: Sequence[Group]
    main: Mapping[str, str]
    counts: Mapping[str, int]
    further: frozenset[str]
    predicting: int
    items: Mapping[str, tuple[str, str]]
    left_out: Sequence[tuple[str, str]]

    @cached_property
    def layered(self) -> Mapping[Key, Group]:
        """Groups in layers, by modality and by what is behind the number."""
        stacks = {stack: modality for modality, stack in self.main.items()}
        return {(stacks[each.stack], each.rest): each for each in self.groups if each.stack in stacks}

    @cached_property
    def others(self) -> Mapping[str, Group]:
        """Groups outside of layers, by name; those that a list counts with `{item}`."""
        return {
            each.name.replace("{layer}", "{item}"): each
            for each in self.groups
            if not each.stack or each.stack in self.items
        }

    def of(self, modality: str) -> set[str]:
        """The names of the groups of a modality: of a language model those in layers, of an encoder all."""
        stack = self.main.get(modality, "")
        inside = {each.name for each in self.groups if each.stack == stack}
        if modality == TEXT:
            return inside - self.further
        base = module_of(stack)
        own = (each for each in self.others.values() if modality_of(each.name) == modality)
        return inside | {each.name for each in own if each.name.startswith(base)}

    def name(self, group: Group) -> str:
        """The name of a group as a source."""
        if group.stack in self.items:
            return group.name.replace("{layer}", "{item}")
        return group.name.replace("{layer}", "{next}") if group.name in self.further else group.name

    def base(self, modality: str) -> str:
        """The module in which the layers of a modality are, with a dot behind it."""
        return module_of(self.main.get(modality, ""))


def anatomy(shapes: Mapping[str, Shape], config: Mapping[str, Any], ignored: Iterable[Ignored]) -> Anatomy:
    """The anatomy of a checkpoint; `ignored`: what other definitions leave out."""
    groups = grouped(shapes)
    main = main_stacks(groups)
    counts = {modality: len(_all(groups, stack)) for modality, stack in main.items()}
    predicting = _predicting(groups, main.get(TEXT, ""), config)
    if predicting:
        counts[TEXT] -= predicting
    fields = Recognition(config)
    items = {}
    for stack in dict.fromkeys(each.stack for each in groups if each.stack and each.stack not in main.values()):
        listed = fields.layer_list(modality_of(stack), len(_all(groups, stack)))
        if listed is not None:
            items[stack] = listed
    left_out, kept = _divided(groups, [*main.values(), *items], ignored)
    ordinary = range(counts.get(TEXT, 0))
    further = (each for each in groups if each.stack == main.get(TEXT) and each.layers.isdisjoint(ordinary))
    return Anatomy(
        groups=kept,
        main=main,
        counts=counts,
        further=frozenset(each.name for each in further),
        predicting=predicting,
        items=items,
        left_out=left_out,
    )


def module_of(stack: str) -> str:
    """The module in which a stack of layers is, with a dot behind it; empty where it is in none."""
    module = stack.rpartition(".")[0]
    return f"{module}." if module else ""


def _divided(
    groups: Iterable[Group], stacks: Sequence[str], ignored: Iterable[Ignored]
) -> tuple[list[tuple[str, str]], list[Group]]:
    """Patterns of what is left out, with reasons, and the groups that are not; `stacks` are those that are not."""
    roots = {beyond(each.stack, stacks): None for each in groups if each.stack and each.stack not in stacks}
    left_out = [(f"{root}.*", f"{TODO}: why this is not converted, or rules for it") for root in roots]
    patterns = {each.names: each.reason for each in ignored if each.names.startswith(_ANYWHERE)}
    kept = []
    for group in groups:
        if any(f"{group.name}.".startswith(f"{root}.") for root in roots):
            continue
        names = next((names for names in patterns if matching(names).fullmatch(group.name)), None)
        if names is None:
            kept.append(group)
        elif (names, patterns[names]) not in left_out:
            left_out.append((names, patterns[names]))
    return left_out, kept


def _all(groups: Iterable[Group], stack: str) -> frozenset[int]:
    return frozenset().union(*(each.layers for each in groups if each.stack == stack))


def _predicting(groups: Sequence[Group], stack: str, config: Mapping[str, Any]) -> int:
    """How many of the layers of a stack predict further tokens, as the configuration and the tensors say."""
    layers = _all(groups, stack)
    said = next((each for path, each in _numbers(config) if path.endswith(FURTHER)), 0)
    own = {layer: {each.name for each in groups if each.stack == stack and layer in each.layers} for layer in layers}
    last = sorted(layers)[-said:] if said else []
    others = {name for layer, names in own.items() if layer not in last for name in names}
    return len(last) if last and all(own[layer] - others for layer in last) else 0


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif type(value) is int:
            yield str(key), value
