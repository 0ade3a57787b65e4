"""Megatron-side parameters as published tensors: the tables of binding, inverted.

Owns the way back. There is one function for all operators, and it is `virtual.invert`: what binding says of published
tensors, read from right to left, over what the parameters themselves are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from distconv.errors import fault
from distconv.models.names import filled
from distconv.models.parameters import Binding, Parameter, Recipe, Unconverted
from distconv.tensors.compose import renumbered, substitute
from distconv.tensors.stored import NamedTensor
from distconv.tensors.tiling import gaps
from distconv.tensors.virtual import VirtualTensor, invert


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Published tensors, in a definition's spelling, and what of the parameters has no place in them."""

    tensors: tuple[NamedTensor, ...]
    left_out: tuple[Unconverted, ...]


def restore(published: Binding, parameters: Binding) -> Restored:
    """The published tensors that parameters were made of.

    `published` and `parameters` are the same parameters: over published tensors, of which only names and shapes count,
    and over what is stored.

    Raises:
        JobError: an element that no parameter holds, or a parameter that only one of the two has; a defect, found
            before writing.
    """
    stored = parameters.by_key()
    if lone := published.by_key().keys() ^ stored.keys():
        raise fault(f"{filled(*min(lone, key=str), None)}: is a parameter of the source or of the result alone")
    groups: dict[tuple[str, ...], list[Parameter]] = {}
    for each in published.parameters:
        groups.setdefault(tuple(source.name for source in each.sources), []).append(each)
    tensors: list[NamedTensor] = []
    left_out: list[Unconverted] = []
    known: dict[tuple[tuple[Recipe, Recipe], ...], list[tuple[VirtualTensor, int]]] = {}
    for names, models in groups.items():
        members = [(model, stored[model.key]) for model in models]
        key = tuple((one.recipe, other.recipe) for one, other in members)
        if key not in known:
            tables = _inverted([one.recipe for one, _ in members], [other.recipe for _, other in members])
            known[key] = [(table, gaps(table)) for table in tables]
        sources = tuple(source for _, other in members for source in other.sources)
        for name, (tensor, lost) in zip(names, known[key], strict=True):
            if lost:
                raise fault(f"{name}: {lost} elements would have no source")
            tensors.append(NamedTensor(sources, tensor, name))
        left_out += [surplus for one, other in members if (surplus := _surplus(one, other)) is not None]
    return Restored(tensors=tuple(tensors), left_out=tuple(left_out))


def _inverted(published: Sequence[Recipe], stored: Sequence[Recipe]) -> list[VirtualTensor]:
    """The published tensors of parameters that share them, over everything that these parameters are stored as."""
    first = published[0]
    operands = [(first.tensor.dtype, shape) for shape in first.source_shapes]
    tables = invert([each.tensor for each in published], operands)
    parts: list[VirtualTensor] = []
    count = 0
    for each in stored:
        parts.append(renumbered(each.tensor, count))
        count += len(each.source_shapes)
    return [substitute(table, parts) for table in tables]


def _surplus(published: Parameter, stored: Parameter) -> Unconverted | None:
    """A parameter of which the published tensors hold only a part, such as the bias of k where they have none."""
    held = sum(prod(copy.shape) for copy in published.recipe.tensor.copies)
    elements = published.recipe.tensor.elements
    if held == elements:
        return None
    reason = f"{elements - held} of {elements} elements: the published model has no such part"
    return Unconverted(tensor=stored.sources[0], reason=reason)
