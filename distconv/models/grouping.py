"""Names of tensors grouped by layer and expert: names that are alike but for these numbers are one group.

Owns which numbers in names count layers, experts, or entries of a list. Sees names and shapes, never tensors, and knows
no model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
_VISION = re.compile(r"vis(ual|ion)|image|(?<![a-z])vit(?![a-z])|patch|siglip|clip|pixel")
_AUDIO = re.compile(r"audio|speech|whisper|sound")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
# What modules that hold layers are called.
_HOLDERS = ("layers", "layer", "blocks", "block", "h", "resblocks")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tensors of one kind, by their name with `{layer}` and `{expert}` in the place of numbers.

    `stack`: the module whose numbers are the layers, empty outside of any; `layers`: those that have the tensor.
    `shape`: the dims, `None` for one that is not the same in all; `experts`: the number of experts, 0 without.
    """

    name: str
    stack: str
    layers: frozenset[int]
    shape: tuple[int | None, ...]
    experts: int = 0

    @property
    def rest(self) -> str:
        """The name behind the number of the layer; all of it outside of layers."""
        return self.name.partition(".{layer}.")[2] if self.stack else self.name


def modality_of(name: str) -> str:
    """The modality that words in a name are of; the text without any."""
    if _AUDIO.search(name.lower()):
        return "audio"
    return "vision" if _VISION.search(name.lower()) else "text"


def grouped(shapes: Mapping[str, Shape]) -> list[Group]:
    """The groups of tensors by name, in the order of their first names."""
    stacks = _stacks(shapes)
    numbered: dict[str, dict[int, dict[int, Shape]]] = {}
    experts = _experts(shapes, stacks)
    stack_of: dict[str, str] = {}
    for name, shape in shapes.items():
        stack, layer, rest = _split(name, stacks)
        number, rest = _expert(stack, rest, experts)
        pattern = f"{stack}.{{layer}}.{rest}" if stack else rest
        stack_of[pattern] = stack
        numbered.setdefault(pattern, {}).setdefault(layer, {})[number] = shape
    return [
        Group(
            name=pattern,
            stack=stack_of[pattern],
            layers=frozenset(found) if stack_of[pattern] else frozenset(),
            shape=_common([shape for each in found.values() for shape in each.values()]),
            experts=len(next(iter(found.values()))) if "{expert}" in pattern else 0,
        )
        for pattern, found in numbered.items()
    ]


def main_stacks(groups: Iterable[Group]) -> dict[str, str]:
    """The stack of each modality that is its layers: the one with most elements; by modality."""
    elements: dict[str, int] = {}
    for group in groups:
        if group.stack:
            own = prod(length or 1 for length in group.shape) * len(group.layers) * max(group.experts, 1)
            elements[group.stack] = elements.get(group.stack, 0) + own
    chosen: dict[str, str] = {}
    for stack in sorted(elements, key=lambda each: -elements[each]):
        chosen.setdefault(modality_of(stack), stack)
    return chosen


def beyond(stack: str, main: Collection[str]) -> str:
    """The beginning of a name that tells a stack from all others: up to the first module that none of these has."""
    parts = stack.split(".")
    for length in range(1, len(parts) + 1):
        root = ".".join(parts[:length])
        if not any(f"{each}.".startswith(f"{root}.") for each in main):
            return root
    return stack


def _stacks(names: Iterable[str]) -> set[str]:
    """The modules whose children are layers: numbered from 0 without a gap, modules themselves, and alike."""
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        parts = name.split(".")
        first = next((place for place, part in enumerate(parts) if _is_number(part) and place), None)
        if first is not None:
            module, rest = ".".join(parts[:first]), ".".join(parts[first + 1 :])
            found.setdefault(module, {}).setdefault(int(parts[first]), set()).add(rest)
    return {module for module, layers in found.items() if _are_layers(module, layers)}


def _are_layers(module: str, layers: Mapping[int, set[str]]) -> bool:
    if set(layers) != set(range(len(layers))) or not any("." in rest for each in layers.values() for rest in each):
        return False
    if len(layers) == 1:
        return module.rpartition(".")[2] in _HOLDERS
    counts: dict[str, int] = {}
    for rest in (rest for each in layers.values() for rest in each):
        counts[rest] = counts.get(rest, 0) + 1
    return max(counts.values()) > len(layers) / 2


def _split(name: str, stacks: Collection[str]) -> tuple[str, int, str]:
    """The stack of a name, the number of its layer, and what is behind; all behind where there is no stack."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if _is_number(part) and (stack := ".".join(parts[:place])) in stacks:
            return stack, int(part), ".".join(parts[place + 1 :])
    return "", 0, name


def _experts(names: Iterable[str], stacks: Collection[str]) -> set[tuple[str, str]]:
    """Stacks and modules in their layers whose children are experts: several, numbered from 0, and called so."""
    found: dict[tuple[str, str], set[int]] = {}
    for name in names:
        stack, _, rest = _split(name, stacks)
        parts = rest.split(".")
        place = next((place for place, part in enumerate(parts) if _is_number(part)), None)
        if place and "expert" in parts[place - 1]:
            found.setdefault((stack, ".".join(parts[:place])), set()).add(int(parts[place]))
    return {key for key, numbers in found.items() if key[0] and numbers == set(range(len(numbers)))}


def _expert(stack: str, rest: str, experts: Collection[tuple[str, str]]) -> tuple[int, str]:
    """The number of the expert in what is behind the layer, and this with `{expert}` in its place."""
    parts = rest.split(".")
    for place, part in enumerate(parts):
        if _is_number(part) and (stack, ".".join(parts[:place])) in experts:
            return int(part), ".".join([*parts[:place], "{expert}", *parts[place + 1 :]])
    return 0, rest


def _is_number(part: str) -> bool:
    """Whether a part of a name is a number as `{layer}` is replaced by it."""
    return _NUMBER.fullmatch(part) is not None


def _common(shapes: list[Shape]) -> tuple[int | None, ...]:
    """The dims that all shapes have; `None` for others, and for all where they have not as many."""
    if len({len(shape) for shape in shapes}) > 1:
        return (None,) * len(shapes[0])
    return tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*shapes, strict=True))
