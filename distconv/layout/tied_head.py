"""Tied embeddings: whether a Megatron-side checkpoint of a tied model holds a head, and which.

Owns `tied_head` and its default, what the training side needs: a copy of the embedding where the head is on another
stage, and nothing of its own where both are on one stage (a head that the source stores is kept then). A stored head
that is left out is compared with the embedding, unless `tied_head` says that it is to be left out.
"""

from __future__ import annotations

from dataclasses import replace

from distconv.errors import InputError
from distconv.layout.layout import CompleteLayout
from distconv.models.definition import Definition
from distconv.models.parameters import Binding, Parameter, Unconverted
from distconv.models.rules import TEXT
from distconv.tensors.replicas import replicas_of
from distconv.tensors.stored import Assembled

NOT_TIED = "this model's head is not known to be tied to its embedding; leave tied_head out"
TIED = (
    "to which config.json ties it (tie_word_embeddings): they must be one; tied_head=keep keeps the stored head, "
    "tied_head=write takes the embedding for it, tied_head=omit leaves it out"
)


def resolve_head(binding: Binding, definition: Definition, layout: CompleteLayout, tied_head: str) -> Binding:
    """The binding with the head that the layout and `tied_head` ask for.

    Raises:
        InputError: the head of a model that is not tied is to be left out.
    """
    if definition.tied is None or TEXT not in binding.layers:
        return binding
    if not binding.tied:
        if tied_head == "omit":
            raise InputError(
                "tied_head=omit: the head of this model is not tied to its embedding and cannot be left out; leave the "
                "option out"
            )
        return binding
    head = definition.tied.head
    stored = [each for each in binding.parameters if each.recipe.rule.target == head]
    others = tuple(each for each in binding.parameters if each.recipe.rule.target != head)
    separate = layout.keeps_separate_head()
    if tied_head != "omit" and (stored or tied_head != "write") and not separate:
        return binding
    if tied_head == "keep" and stored:
        return binding
    embedding = next(each for each in others if each.recipe.rule.target == definition.tied.embedding)
    original = Assembled(embedding.sources, embedding.recipe.tensor)
    left_out = tuple(
        without_head(
            Assembled(each.sources, each.recipe.tensor),
            original,
            tied_head,
            "tied: the head is written as a copy of the embedding",
        )
        for each in stored
    )
    binding = replace(binding, parameters=others, unconverted=binding.unconverted + left_out)
    if tied_head == "omit":
        return binding
    recipe = replace(embedding.recipe, rule=definition.rule_for(head))
    return replace(binding, parameters=(*binding.parameters, Parameter(recipe, embedding.sources)))


def without_head(head: Assembled, embedding: Assembled, tied_head: str, reason: str) -> Unconverted:
    """A stored head that is left out: for a reason that needs it to equal the embedding, or as `tied_head` says.

    However many parts it is stored in, it is one tensor, in the file of the first.

    Raises:
        InputError: it cannot be equal, since it has another shape or element type.
    """
    one, other = head.tensor, embedding.tensor
    whole = replace(head.sources[0], shape=one.shape)
    if tied_head in ("omit", "write"):
        return Unconverted(tensor=whole, reason=f"tied_head={tied_head}")
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        raise InputError(
            f"{whole.file.path}: {whole.name} is {one.dtype} {list(one.shape)}, {embedding.sources[0].name} is "
            f"{other.dtype} {list(other.shape)}, {TIED}"
        )
    return Unconverted(tensor=whole, reason=reason, replicas=tuple(replicas_of(embedding, head, TIED)))
