"""The differences between published tensors and those of a model under training, which a dialect says.

Owns the head of a tied model, which may be written or left out, how experts are packed, and the names that a program
has in memory. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

from distconv.errors import InputError, named, raise_if
from distconv.formats.model import Model
from distconv.layout.tied_head import NOT_TIED
from distconv.models.dialect import PUBLISHED, Dialect, Holding
from distconv.models.experts import Layer
from distconv.models.names import pattern_of
from distconv.models.packing import Form
from distconv.models.parameters import Unconverted
from distconv.tensors.compose import merge_dims, split_dim
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import VirtualTensor

Tensors = Sequence[NamedTensor]
# What float32 holds all numbers of.
_NARROW = ("bfloat16", "float16")


def with_tied_head(
    tensors: Tensors, tie: tuple[str, str] | None, tied_head: str, *, writes: bool
) -> tuple[Tensors, tuple[Unconverted, ...]]:
    """The tensors with the head that `tied_head` asks for, and what is left out.

    `tie`: the names of head and embedding; `None` where they are not known to be one. `writes`: `auto` writes it.

    Raises:
        InputError: the head of a model that is not known, or not tied, is to be written or left out.
    """
    if tied_head == "auto" and writes and tie is not None and tie[1] in {each.name for each in tensors}:
        return [*tensors, *_copied_head(tensors, *tie)], ()
    if tied_head in ("auto", "keep"):
        return tensors, ()
    if tie is None:
        raise InputError(f"tied_head={tied_head}: {NOT_TIED}")
    head, embedding = tie
    named_so = {each.name: each for each in tensors}
    if tied_head == "write":
        if embedding not in named_so:
            raise InputError(
                f"tied_head=write: source tensor {embedding} is missing: the head is a copy of it; leave the option out"
            )
        return [*tensors, *_copied_head(tensors, head, embedding)], ()
    others = [each for each in tensors if each.name != head]
    # One that is a copy of the embedding already is not stored.
    stored = named_so[head].sources if head in named_so else ()
    if embedding in named_so and stored == named_so[embedding].sources:
        stored = ()
    return others, tuple(Unconverted(tensor=each, reason="tied_head=omit") for each in stored)


def _copied_head(tensors: Tensors, head: str, embedding: str) -> list[NamedTensor]:
    """The head as a copy of the embedding, where it is not among the tensors."""
    named_so = {each.name: each for each in tensors}
    return [] if head in named_so else [replace(named_so[embedding], name=head)]


def packed(tensors: Tensors, model: Model, dialect: Dialect, holding: Holding, how: str, prefix: str) -> Tensors:
    """The tensors, with experts packed as a dialect has them, or as `how`, the option `packed_experts`, says.

    Raises:
        InputError: experts that are not complete, or in no layout that they can be brought from.
    """
    flat = how == "flatten" or (how == "auto" and dialect.name == PUBLISHED and bool(prefix))

    def wanted(layer: Layer, form: Form) -> Form:
        if how != "keep" and dialect.name != PUBLISHED:
            form = holding.experts
        elif flat and form is not None:
            # Nobody holds other matrices than those of what is published, whichever release has saved the source.
            form = layer[0].published or form
        if form is None:
            return None
        flattened = flat or (how == "auto" and dialect.name != PUBLISHED and form.flattened)
        return replace(form, flattened=flattened)

    tensors = model.spellings.experts.respelled(tensors, wanted)
    return _by_definition(tensors, model, lambda tensor: merge_dims(tensor, 0), 3) if flat else tensors


def held_tensors(
    tensors: Iterable[NamedTensor], model: Model, holding: Holding, prefix: str
) -> tuple[list[NamedTensor], tuple[Unconverted, ...]]:
    """The tensors under the names, and of the types, that a dialect has for them, and those that it does not hold.

    Raises:
        InputError: names that would not be found again on the way back.
    """
    held, left_out, astray = [], [], []
    # Tensors of one table share the other one, too.
    float32 = cache(lambda table: replace(table, dtype="float32"))
    for each in tensors:
        if (reason := holding.why_left_out(each.name)) is not None:
            left_out += [Unconverted(tensor=stored, reason=reason) for stored in each.sources]
            continue
        name = holding.held(each.name)
        if model.spelled(holding.published(name)) != model.spelled(each.name):
            astray.append(each.name)
        table = each.tensor
        if table.dtype in _NARROW and holding.is_in_float32(each.name):
            table = float32(table)
        held.append(replace(each, name=prefix + name, tensor=table))
    raise_if(
        [f"the dialect names tensors so that they are not found again: {named(astray)}; mend its names"]
        if astray
        else []
    )
    return held, tuple(left_out)


def split_by_definition(tensors: Tensors, model: Model) -> Tensors:
    """The tensors, with experts in three dims that a definition knows as packed, and training may hold as a matrix."""
    definition = model.definition
    if definition is None:
        return tensors
    experts = definition.expert_count(model.sizes)

    def split(tensor: VirtualTensor) -> VirtualTensor:
        # Where it does not divide, binding says what is wrong.
        return split_dim(tensor, 0, experts) if experts and not tensor.shape[0] % experts else tensor

    return _by_definition(tensors, model, split, 2)


def _by_definition(
    tensors: Tensors, model: Model, change: Callable[[VirtualTensor], VirtualTensor], dims: int
) -> Tensors:
    """The tensors, with a change of those that rules of a definition know as packed experts and that have `dims` dims.

    Experts that a dialect knows have been changed before.
    """
    definition = model.definition
    if definition is None:
        return tensors
    # Matrices; of packed biases the first of two dims counts the experts already.
    pattern = pattern_of(rule for rule in definition.rules if rule.packs_experts and len(rule.sources[0].dims) == 3)
    shared = cache(change)
    return [
        replace(each, tensor=shared(each.tensor))
        if len(each.tensor.shape) == dims and pattern.fullmatch(definition.spelled(each.name))
        else each
        for each in tensors
    ]
