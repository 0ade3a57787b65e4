"""Resizing the vocabulary: the rows of embedding and head.

Owns `vocab_size`: rows beyond the new number are left out, new rows are zeros; and `vocab_multiple`, which leaves none
out. Both apply to what has the size that a definition calls `vocabulary` as its first source dim, and change nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from distconv.errors import InputError, counted, named
from distconv.models.definition import Definition
from distconv.models.parameters import Binding, Recipe
from distconv.models.rules import Rule
from distconv.models.sizes import Sizes
from distconv.tensors.virtual import VirtualTensor, concat, narrow, zeros

SIZE_NAME = "vocabulary"


def has_vocabulary(rule: Rule) -> bool:
    """Whether the rows of the rule's parameter are those of the vocabulary."""
    return rule.sources[0].dims[:1] == (SIZE_NAME,)


def published_names(definition: Definition) -> frozenset[str]:
    """The names of the published tensors whose rows are those of the vocabulary."""
    sources = (source for rule in definition.rules for source in rule.sources)
    names = frozenset(source.name for source in sources if source.dims[:1] == (SIZE_NAME,))
    return names | {each.name for each in definition.copied if each.of in names}


def with_rows_of(shapes: Mapping[str, tuple[int, ...]], definition: Definition, sizes: Sizes) -> Sizes:
    """The sizes with the vocabulary of published tensors, by name, where it is larger than `config.json` says.

    So it is where training padded it, or added tokens.
    """
    found = [shapes[name][0] for name in published_names(definition) & shapes.keys() if shapes[name]]
    return sizes.having(**{SIZE_NAME: max(found)}) if found and max(found) > sizes.get(SIZE_NAME) else sizes


def resize_vocabulary(binding: Binding, rows: int | None) -> Binding:
    """The binding with `rows` rows in the embedding and the head; unchanged for `None`.

    Raises:
        InputError: no converted parameter has a vocabulary.
    """
    if rows is None:
        return binding
    recipes: dict[Recipe, Recipe] = {}
    for parameter in binding.parameters:
        recipe = parameter.recipe
        if has_vocabulary(recipe.rule) and recipe not in recipes:
            recipes[recipe] = _resized(recipe, rows)
    if not recipes:
        raise nothing_to_resize(rows)
    parameters = tuple(replace(each, recipe=recipes.get(each.recipe, each.recipe)) for each in binding.parameters)
    return replace(binding, parameters=parameters)


def padded_rows(binding: Binding, multiple: int) -> int:
    """The least multiple of `multiple` that no vocabulary in the binding has more rows than.

    Raises:
        InputError: no converted parameter has a vocabulary.
    """
    recipes = {each.recipe for each in binding.parameters}
    found = [each.tensor.shape[0] for each in recipes if has_vocabulary(each.rule)]
    if not found:
        raise InputError("vocab_multiple: nothing that is converted has a vocabulary; leave it out")
    return -(-max(found) // multiple) * multiple


def resized(tensor: VirtualTensor, rows: int) -> VirtualTensor:
    """The tensor with its first rows, or with rows of zeros behind them."""
    old, *rest = tensor.shape
    if rows <= old:
        return narrow(tensor, 0, 0, rows)
    return concat([tensor, zeros(tensor.dtype, (rows - old, *rest))])


def resizing_of(binding: Binding, rows: int | None) -> tuple[str, ...]:
    """What `resize_vocabulary` does to the parameters of a binding, in sentences."""
    found = ((each.name, each.recipe) for each in binding.parameters)
    sizes = {name: recipe.tensor.shape[0] for name, recipe in found if has_vocabulary(recipe.rule)}
    return () if rows is None else tuple(resizing(sizes, rows))


def resizing(found: Mapping[str, int], rows: int) -> Iterator[str]:
    """What `vocab_size` does to tensors of these numbers of rows, in sentences."""
    names: dict[int, list[str]] = {}
    for name, old in found.items():
        names.setdefault(old, []).append(name)
    for old, those in names.items():
        if rows < old:
            yield f"vocab_size={rows}: the last {counted(old - rows, 'row')} of {named(those)} left out"
        elif rows > old:
            yield f"vocab_size={rows}: {counted(rows - old, 'row')} of zeros added to {named(those)}"


def nothing_to_resize(rows: int) -> InputError:
    """The error of an option that applies to nothing."""
    return InputError(f"vocab_size={rows}: nothing that is converted has a vocabulary; leave it out")


def _resized(recipe: Recipe, rows: int) -> Recipe:
    dims = tuple(f"vocab_size={rows}" if each.startswith(f"{SIZE_NAME} ") else each for each in recipe.dims)
    tensor = recipe.tensor
    cut = max(tensor.shape[0] - rows, 0) * (tensor.elements // tensor.shape[0])
    return replace(recipe, dims=dims, tensor=resized(tensor, rows), unused=recipe.unused + cut)
