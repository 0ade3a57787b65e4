"""The differences between published tensors and those of a model under FSDP2 training.

Owns the head of a tied model, which may be written or left out, and packed experts, which a wrapped model holds as
matrices. Needs a model definition for both, and reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from distconv.errors import InputError
from distconv.layout.tied_head import NOT_TIED
from distconv.models.definition import Definition
from distconv.models.names import pattern_of
from distconv.models.parameters import Unconverted
from distconv.models.sizes import Sizes
from distconv.tensors.compose import merge_dims
from distconv.tensors.stored import NamedTensor

Tensors = Sequence[NamedTensor]


def with_tied_head(
    tensors: Tensors, definition: Definition | None, sizes: Sizes | None, tied_head: str
) -> tuple[Tensors, tuple[Unconverted, ...]]:
    """The tensors with the head that `tied_head` asks for, and what is left out.

    Raises:
        InputError: the head of a model that is not known, or not tied, is to be written or left out.
    """
    if tied_head in ("auto", "keep"):
        return tensors, ()
    if definition is None or sizes is None or not definition.is_tied(sizes):
        raise InputError(f"tied_head={tied_head}: {NOT_TIED}")
    spelled = {definition.spelled(each.name): each for each in tensors}
    head, embedding = definition.tied_sources(spelled)
    if tied_head == "write":
        if embedding not in spelled:
            raise InputError(f"tied_head=write: source tensor {embedding} is missing: the head is a copy of it")
        return tensors if head in spelled else [*tensors, replace(spelled[embedding], name=head)], ()
    others = [each for name, each in spelled.items() if name != head]
    # One that is a copy of the embedding already is not stored.
    stored = spelled[head].sources if head in spelled else ()
    if embedding in spelled and stored == spelled[embedding].sources:
        stored = ()
    return others, tuple(Unconverted(tensor=each, reason="tied_head=omit") for each in stored)


def flattened(tensors: Tensors, definition: Definition | None) -> Tensors:
    """The tensors, with packed experts `[experts, a, b]` as matrices `[experts * a, b]`."""
    if definition is None:
        return tensors
    packed = pattern_of(rule for rule in definition.rules if rule.packs_experts)
    matrix = cache(lambda tensor: merge_dims(tensor, 0))
    return [
        replace(each, tensor=matrix(each.tensor)) if packed.fullmatch(definition.spelled(each.name)) else each
        for each in tensors
    ]
