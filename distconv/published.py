"""Tensors under their published (Hugging Face) names, as FSDP2 training loads them.

Owns what may differ from the checkpoint all the same: the head of a tied model, which may be written or left out, and
packed experts, which a wrapped model holds as matrices. Any checkpoint can be taken; only these two need a definition.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from distconv.binding import Unconverted
from distconv.composition import merge_dims
from distconv.definition import Definition
from distconv.errors import InputError
from distconv.matching import pattern_of
from distconv.outputs import NamedTensor
from distconv.sizes import Sizes
from distconv.source import SourceIndex
from distconv.virtual import whole


def published_tensors(
    index: SourceIndex, definition: Definition | None, sizes: Sizes | None, tied_head: str, *, flattened: bool
) -> tuple[list[NamedTensor], tuple[Unconverted, ...]]:
    """The tensors of a checkpoint, and those that are left out; `flattened`: packed experts as matrices.

    Raises:
        InputError: the head of a model that is not known, or not tied, is to be written or left out.
    """
    known = cache(whole)
    tensors = {
        stored.name: NamedTensor(stored.name, (stored,), known(stored.dtype, stored.shape))
        for stored in index.tensors.values()
    }
    left_out: tuple[Unconverted, ...] = ()
    if tied_head != "auto":
        head, embedding = _tied_names(index, definition, sizes, tied_head)
        if tied_head == "write":
            tensors.setdefault(head, replace(tensors[embedding], name=head))
        elif head in tensors:
            left_out = (Unconverted(tensor=tensors.pop(head).sources[0], reason="tied_head=omit"),)
    if flattened and definition is not None:
        experts = pattern_of(rule for rule in definition.rules if rule.is_packed)
        matrix = cache(lambda tensor: merge_dims(tensor, 0))
        for name, tensor in tensors.items():
            if experts.fullmatch(definition.spelling(name)):
                tensors[name] = replace(tensor, tensor=matrix(tensor.tensor))
    return list(tensors.values()), left_out


def _tied_names(
    index: SourceIndex, definition: Definition | None, sizes: Sizes | None, tied_head: str
) -> tuple[str, str]:
    """The published names of the head and of the embedding, as the checkpoint spells them."""
    if definition is None or sizes is None or definition.tied is None or not sizes.flag(definition.tied.flag):
        raise InputError(
            f"tied_head={tied_head}: this model's head is not known to be tied to its embedding; leave tied_head out"
        )
    head, embedding = definition.tied_sources()
    spelled = {definition.spelling(name): name for name in index.tensors}
    if embedding not in spelled:
        raise InputError(f"{index.directory}: source tensor {embedding} is missing: the head is tied to it")
    return spelled.get(head, head), spelled[embedding]
