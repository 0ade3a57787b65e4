"""Cutting parameters: the tensor parallel shards of each recipe, and the proof that they hold every element once.

Owns the derivation of shards and the checks on them; a recipe is cut and proved once, however many layers share it.
Places nothing and reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from math import gcd

from distconv.errors import fault, raise_if
from distconv.layout.layout import CompleteLayout, divisors
from distconv.models.parameters import Recipe
from distconv.tensors.cuts import TENSOR_PARALLEL_RULES, TensorParallelRule
from distconv.tensors.tiling import gaps
from distconv.tensors.virtual import VirtualTensor, invert

# The distinct shards of a parameter: tensor parallel rank `r` holds shard `r mod` their number.
Shards = tuple[VirtualTensor, ...]


def cut_recipes(recipes: Iterable[Recipe], layout: CompleteLayout) -> dict[Recipe, Shards]:
    """The shards of each recipe: as many as the tensor parallel size of its modality, or one if replicated.

    Raises:
        InputError: every size that the tensor parallel size does not divide.
        JobError: a rule whose shards lose or repeat an element; a defect of the rule, found before writing.
    """
    problems: dict[str, None] = {}
    shards: dict[Recipe, Shards] = {}
    # By option, what its size has to divide, and the options with a size that does not.
    divided: dict[str, int] = {}
    refused: dict[str, None] = {}
    for recipe in recipes:
        if recipe in shards:
            continue
        rule = recipe.rule
        size = layout.pieces(rule)
        key = f"layout.modality_tp.{rule.modality}" if rule.modality in layout.modality_tp else "layout.tp"
        if size != layout.tensor_parallel_size(rule.modality):
            key = "layout.expert_tp"
        at = f"{key}={size}: {rule.target}, tp rule {rule.tensor_parallel}"
        rule_of_cut = TENSOR_PARALLEL_RULES[rule.tensor_parallel]
        unit = None if recipe.unit is None else recipe.unit[0]
        divided[key] = gcd(divided.get(key, 0), _to_divide(recipe, rule_of_cut, unit))
        if recipe.unit is not None and not rule_of_cut.uneven and recipe.unit[0] % size:
            problems[
                f"{key}={size}: does not divide {recipe.unit[1]}: {rule.modality} attention is cut at whole heads"
            ] = None
            refused[key] = None
            continue
        try:
            pieces = rule_of_cut.cut(recipe.tensor, size, unit)
        except ValueError as error:
            assert rule_of_cut.dim is not None
            problems[f"{at}: {error}; made of {' and '.join(_lengths(recipe, rule_of_cut.dim))}"] = None
            refused[key] = None
            continue
        shards[recipe] = tuple(pieces if rule_of_cut.dim_of(recipe.tensor.shape) is not None else pieces[:1])
        _prove(recipe, shards[recipe])
    raise_if([*problems, *(f"{key}: sizes that fit all of this model: {divisors(divided[key])}" for key in refused)])
    return shards


def _to_divide(recipe: Recipe, rule: TensorParallelRule, unit: int | None) -> int:
    """The number that a tensor parallel size has to divide for a cut of the parameter; 0 where any size does."""
    dim = rule.dim_of(recipe.tensor.shape)
    if rule.uneven or dim is None:
        return 0
    return recipe.tensor.shape[dim] // rule.parts if unit is None else unit


def _lengths(recipe: Recipe, dim: int) -> dict[str, None]:
    """The words in messages for the source dims that run along a dim of the parameter."""
    starts = [0, *accumulate(map(len, recipe.source_shapes))]
    along = ((starts[copy.operand], copy.dims[dim]) for copy in recipe.tensor.copies)
    return dict.fromkeys(recipe.dims[start + source_dim] for start, source_dim in along if source_dim is not None)


def _prove(recipe: Recipe, shards: Shards) -> None:
    try:
        for shard in shards:
            gaps(shard)
    except ValueError as error:
        raise fault(f"{recipe.rule.target}: {error}") from None
    operands = [(recipe.tensor.dtype, shape) for shape in recipe.source_shapes]
    if lost := sum(map(gaps, invert(shards, operands))) - recipe.unused:
        names = ", ".join(source.name for source in recipe.rule.sources)
        raise fault(f"{names}: {lost} elements would be in no shard")
