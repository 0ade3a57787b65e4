"""Published tensors over the stored tensors of Megatron-side parameters: the tables of binding, inverted.

Owns the way back: `virtual.invert` turns parameters over published tensors into published tensors over parameters, and
`compose.substitute` puts the stored tensors in place of the parameters. Never asks for the operator of a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from distconv.errors import JobError, raise_if
from distconv.models.bind import Binding, Parameter, Recipe, Unconverted
from distconv.models.names import filled
from distconv.models.vocabulary import SIZE_NAME
from distconv.tensors.compose import renumbered, substitute
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import VirtualTensor, gaps, invert, narrow


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Published tensors under the definition's spelling, and parameters with elements that no published tensor has."""

    tensors: tuple[NamedTensor, ...]
    left_out: tuple[Unconverted, ...]


def restore(over_hf: Binding, over_stored: Binding) -> Restored:
    """The published tensors of a model as tables over stored tensors, given its parameters twice.

    `over_hf`: the parameters over published tensors, of which only names and shapes are used; `over_stored`: the same
    parameters over the stored tensors of the source.

    Raises:
        JobError: an element of a published tensor in no parameter, or a parameter in only one of the two bindings; a
            defect, found before writing.
    """
    stored = over_stored.by_key()
    if lone := over_hf.by_key().keys() ^ stored.keys():
        raise JobError(f"{filled(*min(lone, key=str), None)}: has nothing to be paired with; nothing has been written")
    groups: dict[tuple[str, ...], list[Parameter]] = {}
    for each in over_hf.parameters:
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
                raise JobError(f"{name}: {lost} elements would have no source; nothing has been written")
            tensors.append(NamedTensor(sources, tensor, name))
        left_out += [surplus for one, other in members if (surplus := _surplus(one, other)) is not None]
    return Restored(tensors=tuple(tensors), left_out=tuple(left_out))


def with_vocabulary(over_hf: Binding, tensors: Sequence[NamedTensor], rows: int, where: str) -> list[NamedTensor]:
    """The published tensors of the parameters `over_hf`, with `rows` rows of vocabulary; rows of padding are left out.

    Raises:
        InputError: a tensor with fewer rows; `where` names the configuration in the message.
    """
    names = {
        source.name
        for each in over_hf.parameters
        for source, pattern in zip(each.sources, each.recipe.rule.sources, strict=True)
        if pattern.dims[:1] == (SIZE_NAME,)
    }
    result, problems = [], []
    for each in tensors:
        found = each.tensor.shape[0] if each.name in names else rows
        if found < rows:
            problems.append(f"{each.name}: the source has {found} rows of the vocabulary, {where} says {rows}")
        elif found > rows:
            each = replace(each, tensor=narrow(each.tensor, 0, 0, rows))  # noqa: PLW2901 - the same tensor with fewer rows
        result.append(each)
    raise_if(problems)
    return result


def _inverted(over_hf: Sequence[Recipe], over_stored: Sequence[Recipe]) -> list[VirtualTensor]:
    """The published tensors that these parameters share, as tables over the stored tensors of all of them."""
    first = over_hf[0]
    operands = [(first.tensor.dtype, shape) for shape in first.source_shapes]
    tables = invert([each.tensor for each in over_hf], operands)
    parameters: list[VirtualTensor] = []
    count = 0
    for each in over_stored:
        parameters.append(renumbered(each.tensor, count))
        count += len(each.source_shapes)
    return [substitute(table, parameters) for table in tables]


def _surplus(over_hf: Parameter, stored: Parameter) -> Unconverted | None:
    """The parameter, if published tensors hold only a part of its elements, such as for a bias of k that is zeros."""
    held = sum(prod(copy.shape) for copy in over_hf.recipe.tensor.copies)
    elements = over_hf.recipe.tensor.elements
    if held == elements:
        return None
    reason = f"{elements - held} of {elements} elements: the published model has no such part"
    return Unconverted(tensor=stored.sources[0], reason=reason)
