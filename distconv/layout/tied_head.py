"""Tied embeddings: the head parameter, if any, of a tied model in a Megatron-side checkpoint.

Owns `tied_head` and its default, which is what training requires: a copy of the embedding if the head is on another
stage, and no head of its own if both are on one stage (a stored head of the source is kept then). Reads nothing.
"""

from __future__ import annotations

from dataclasses import replace

from distconv.errors import InputError
from distconv.layout.layout import CompleteLayout
from distconv.models.bind import Binding, Parameter, Unconverted
from distconv.models.definition import Definition
from distconv.models.rules import TEXT


def resolve_head(binding: Binding, definition: Definition, layout: CompleteLayout, tied_head: str) -> Binding:
    """The binding with or without a head parameter, as the layout requires and `tied_head` demands.

    Raises:
        InputError: the head of a model that is not tied is to be left out.
    """
    if definition.tied is None or TEXT not in binding.layers:
        return binding
    if not binding.tied:
        if tied_head == "omit":
            raise InputError(
                "tied_head=omit: the head of this model is not tied to its embedding and cannot be left out"
            )
        return binding
    head = definition.tied.head
    stored = [each for each in binding.parameters if each.recipe.rule.target == head]
    others = tuple(each for each in binding.parameters if each.recipe.rule.target != head)
    separate = layout.keeps_separate_head()
    if tied_head == "auto" and not separate:
        return binding
    if tied_head == "omit" or separate:
        reason = "tied_head=omit" if tied_head == "omit" else "tied: the head is written as a copy of the embedding"
        left_out = tuple(Unconverted(tensor=tensor, reason=reason) for each in stored for tensor in each.sources)
        binding = replace(binding, parameters=others, unconverted=binding.unconverted + left_out)
        stored = []
    if tied_head == "omit" or stored:
        return binding
    embedding = next(each for each in others if each.recipe.rule.target == definition.tied.embedding)
    recipe = replace(embedding.recipe, rule=definition.rule_for(head))
    return replace(binding, parameters=(*binding.parameters, Parameter(recipe, embedding.sources)))
