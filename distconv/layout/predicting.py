"""Layers that predict further tokens: the training side gives the stage that holds them an embedding of its own.

Owns where the embedding is then. It is one parameter, of which both stages have a copy.
"""

from __future__ import annotations

from dataclasses import replace

from distconv.models.parameters import Binding, Recipe
from distconv.models.predicting import PREDICTING
from distconv.models.vocabulary import has_vocabulary


def with_embedding(binding: Binding) -> Binding:
    """The binding with the embedding on the last stage, too, if layers that predict further tokens are there.

    Source: megatron-core 0.16.1, GPTModel, `pre_process or mtp_process`.
    """
    if all(each.recipe.rule.section != PREDICTING for each in binding.parameters):
        return binding
    recipes: dict[Recipe, Recipe] = {}
    for each in binding.parameters:
        rule = each.recipe.rule
        if rule.stage == "first" and has_vocabulary(rule) and each.recipe not in recipes:
            recipes[each.recipe] = replace(each.recipe, rule=replace(rule, stage="ends"))
    parameters = tuple(replace(each, recipe=recipes.get(each.recipe, each.recipe)) for each in binding.parameters)
    return replace(binding, parameters=parameters)
