"""Resizing the vocabulary: the rows of embedding and head.

Owns `vocab_size`: rows beyond the new number are left out, new rows are zeros. It applies to parameters whose first
source dim is the size that a definition calls `vocabulary`, and changes no other.
"""

from __future__ import annotations

from dataclasses import replace

from distconv.errors import InputError
from distconv.models.parameters import Binding, Recipe
from distconv.models.rules import Rule
from distconv.tensors.virtual import concat, narrow, zeros

SIZE_NAME = "vocabulary"


def has_vocabulary(rule: Rule) -> bool:
    """Whether the rows of the rule's parameter are those of the vocabulary."""
    return rule.sources[0].dims[:1] == (SIZE_NAME,)


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
        raise InputError(f"vocab_size={rows}: nothing that is converted has a vocabulary")
    parameters = tuple(replace(each, recipe=recipes.get(each.recipe, each.recipe)) for each in binding.parameters)
    return replace(binding, parameters=parameters)


def _resized(recipe: Recipe, rows: int) -> Recipe:
    dims = tuple(f"vocab_size={rows}" if each.startswith(f"{SIZE_NAME} ") else each for each in recipe.dims)
    recipe = replace(recipe, dims=dims)
    tensor = recipe.tensor
    old, *rest = tensor.shape
    if rows <= old:
        cut = (old - rows) * (tensor.elements // old)
        return replace(recipe, tensor=narrow(tensor, 0, 0, rows), unused=recipe.unused + cut)
    return replace(recipe, tensor=concat([tensor, zeros(tensor.dtype, (rows - old, *rest))]))
