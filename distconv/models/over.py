"""Parameters over tensors that are themselves assembled: of chunks of a file, or of tensors in another form.

Owns the substitution of what a binding takes for stored. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from distconv.models.parameters import Binding, Parameter, Recipe
from distconv.tensors.compose import renumbered, substitute
from distconv.tensors.stored import NamedTensor, SourceFile, SourceIndex, StoredTensor


def as_index(tensors: Iterable[NamedTensor], directory: str) -> SourceIndex:
    """Assembled tensors as if each were stored, for a binding that `over` then gives its true sources."""
    nowhere = SourceFile(directory, 0)
    stored = (
        StoredTensor(each.name, each.tensor.dtype, each.tensor.shape, _first_file(each, nowhere), 0) for each in tensors
    )
    return SourceIndex(directory=directory, tensors={each.name: each for each in stored})


def over(binding: Binding, assembled: Mapping[str, NamedTensor]) -> Binding:
    """The binding with the stored tensors of its parameters replaced by the assembled tensors of their names."""
    recipes: dict[tuple[object, ...], Recipe] = {}
    parameters = []
    for each in binding.parameters:
        tensors = [assembled[source.name] for source in each.sources]
        # By the identity of the tables, which are few: their hash would cover every copy.
        key = (each.recipe, *((id(tensor.tensor), *(part.shape for part in tensor.sources)) for tensor in tensors))
        if key not in recipes:
            recipes[key] = _over(each.recipe, tensors)
        stored = tuple(source for tensor in tensors for source in tensor.sources)
        parameters.append(Parameter(recipes[key], stored, each.layer, each.expert))
    unconverted = tuple(
        replace(each, tensor=replace(each.tensor, file=_first_file(assembled[each.tensor.name], each.tensor.file)))
        for each in binding.unconverted
    )
    return replace(binding, parameters=tuple(parameters), unconverted=unconverted)


def _first_file(tensor: NamedTensor, otherwise: SourceFile) -> SourceFile:
    """The file of the first source of a tensor; another one for a tensor without elements."""
    return tensor.sources[0].file if tensor.sources else otherwise


def _over(recipe: Recipe, tensors: list[NamedTensor]) -> Recipe:
    tables, count = [], 0
    for each in tensors:
        tables.append(renumbered(each.tensor, count))
        count += len(each.sources)
    shapes = tuple(source.shape for each in tensors for source in each.sources)
    between = sum(map(prod, shapes)) - sum(each.tensor.elements for each in tensors)
    return replace(
        recipe,
        tensor=substitute(recipe.tensor, tables),
        source_shapes=shapes,
        unused=recipe.unused + between,
    )
