"""Two checkpoints brought to one name space: which tensors both have, and what of them is compared.

Owns the pairing by published names, in the spelling of the model definition and with experts as it has them, and the
type in which elements are compared: the one that both have, or else one that holds both exactly. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from distconv.errors import counted, named
from distconv.formats.base import Published, Source
from distconv.formats.huggingface.follow import tie_of
from distconv.formats.model import Model
from distconv.models.experts import as_published
from distconv.models.names import Explanations
from distconv.planning.sides import Side, said_of
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.pairs import Pair
from distconv.tensors.replicas import Replica
from distconv.tensors.stored import Assembled, NamedTensor
from distconv.tensors.virtual import Index, VirtualTensor, narrow


@dataclass(frozen=True, slots=True)
class Form:
    """The element type of a tensor as it is stored, or the kind of its codes, and its shape."""

    dtype: str
    shape: Index

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {"dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class Match:
    """A tensor that both sides have: its forms, and what of it is compared, `None` if nothing can be.

    Of tensors with different numbers of rows, such as a padded vocabulary, the rows that both have are compared.
    """

    name: str
    source: Form
    target: Form
    pair: Pair | None

    @property
    def is_alike(self) -> bool:
        """Whether both have the same form."""
        return self.source == self.target


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What two checkpoints have in common, and what one of them has alone, by name.

    `replicas`: what either stores several times, with its option. `notes`: sentences about either.
    """

    matches: Sequence[Match]
    source_alone: Mapping[str, Form]
    target_alone: Mapping[str, Form]
    replicas: Sequence[tuple[str, Replica]]
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """A side, bound to its model: its tensors by name."""

    key: str
    model: Model
    source: Source
    published: Published
    tensors: Mapping[str, NamedTensor]

    @staticmethod
    def of(side: Side) -> _Bound:
        model = side.facts.bound_model()
        source = side.facts.bound(side.options, model)
        published = source.published()
        tensors = [replace(each, name=model.spelled(each.name)) for each in published.tensors]
        if model.definition is not None:
            tensors = model.spellings.experts.respelled(tensors, as_published)
        by_name = {each.name: each for each in tensors}
        return _Bound(key=side.key, model=model, source=source, published=published, tensors=by_name)

    @property
    def forms(self) -> dict[str, Form]:
        return {name: _form(each) for name, each in self.tensors.items()}

    def with_packing_of(self, other: _Bound) -> _Bound:
        """The side with experts as published, where no definition says so, and the other one has other tensors."""
        if self.model.definition is not None or _shapes(self) == _shapes(other):
            return self
        tensors = self.model.spellings.experts.respelled(list(self.tensors.values()), as_published)
        return replace(self, tensors={each.name: each for each in tensors})

    def with_copies_for(self, other: _Bound) -> _Bound:
        """The side with a tied head, and copies, that only the other one stores: they are what they are copies of."""
        pairs = {} if self.model.definition is None else {each.name: each.of for each in self.model.definition.copied}
        pairs |= dict([tie] if (tie := tie_of(list(self.tensors.values()), self.model)) else [])
        added = {
            name: replace(self.tensors[of], name=name)
            for name, of in pairs.items()
            if name in other.tensors and name not in self.tensors and of in self.tensors
        }
        return replace(self, tensors={**self.tensors, **added})

    def cannot_hold(self, name: str) -> str | None:
        """Why parameters never hold a tensor of the other side, in words; `None` if they may."""
        definition = self.model.definition
        if definition is None or not self.published.bound:
            return None
        return Explanations(definition, {}, self.model.sizes).reason(name)


def paired(source: Side, target: Side) -> Pairing:
    """The pairing of two sides.

    Raises:
        InputError: every contradiction between a side and its model.
    """
    one, other = (said_of(side.key, partial(_Bound.of, side)) for side in (source, target))
    one, other = one.with_packing_of(other), other.with_packing_of(one)
    notes = [note for each in (one, other) for note in _notes(each)]
    filled = one.with_copies_for(other), other.with_copies_for(one)
    notes += [
        f"{before.key}: {name} is not stored: it equals a tensor that is, which was compared"
        for before, after in zip((one, other), filled, strict=True)
        for name in after.tensors
        if name not in before.tensors
    ]
    one, other = filled
    source_alone, reasons = _alone(one, other)
    target_alone, others = _alone(other, one)
    return Pairing(
        matches=[_match(name, one.tensors[name], other.tensors[name]) for name in one.tensors if name in other.tensors],
        source_alone=source_alone,
        target_alone=target_alone,
        replicas=[(each.key, replica) for each in (one, other) for replica in _replicas(each)],
        notes=[*notes, *reasons, *others],
    )


def _shapes(bound: _Bound) -> dict[str, Index]:
    return {name: each.tensor.shape for name, each in bound.tensors.items()}


def _replicas(bound: _Bound) -> Iterator[Replica]:
    yield from bound.source.replicas
    for each in bound.published.left_out:
        yield from each.replicas


def _notes(bound: _Bound) -> Iterator[str]:
    notes = [*bound.source.notes, *(() if bound.model.reference is None else bound.model.reference.notes)]
    left: dict[str, list[str]] = {}
    for each in bound.published.left_out:
        left.setdefault(each.reason, []).append(each.tensor.name)
    notes += [f"not compared: {named(names, 3)}: {reason}" for reason, names in left.items()]
    yield from (f"{bound.key}: {note}" for note in notes)


def _alone(one: _Bound, other: _Bound) -> tuple[dict[str, Form], list[str]]:
    """The tensors that only one has, without those that the other never holds, and these in words."""
    forms = {name: form for name, form in one.forms.items() if name not in other.tensors}
    reasons: dict[str, list[str]] = {}
    for name in forms:
        if (reason := other.cannot_hold(name)) is not None:
            reasons.setdefault(reason, []).append(name)
    excused = {name for names in reasons.values() for name in names}
    notes = [
        f"not compared: {counted(len(names), 'tensor')} of the {one.key} alone: {reason}: {named(names, 2)}"
        for reason, names in reasons.items()
    ]
    return {name: form for name, form in forms.items() if name not in excused}, notes


def _form(tensor: Assembled) -> Form:
    codes = {each.stored_as for each in tensor.sources if each.quantised is not None}
    return Form(" and ".join(sorted(codes)) or tensor.tensor.dtype, tensor.tensor.shape)


def _match(name: str, one: NamedTensor, other: NamedTensor) -> Match:
    return Match(name=name, source=_form(one), target=_form(other), pair=_pair(name, one, other))


def _pair(name: str, one: NamedTensor, other: NamedTensor) -> Pair | None:
    dtype = _common_type(one, other)
    if dtype is None:
        return None
    first, second = one.tensor.shape, other.tensor.shape
    rows = None
    if first != second:
        if len(first) != len(second) or not first or first[1:] != second[1:]:
            return None
        rows = min(first[0], second[0])
    return Pair(name, *(Assembled(each.sources, _table(each.tensor, dtype, rows)) for each in (one, other)))


def _table(tensor: VirtualTensor, dtype: str, rows: int | None) -> VirtualTensor:
    tensor = tensor if rows is None or rows == tensor.shape[0] else narrow(tensor, 0, 0, rows)
    return tensor if tensor.dtype == dtype else replace(tensor, dtype=dtype)


def _common_type(one: NamedTensor, other: NamedTensor) -> str | None:
    """The type in which elements are compared; `None` if they cannot be.

    A quantised weight is compared with a plain one as it would be converted to it: rounded once.
    """
    plain = [each.tensor.dtype for each in (one, other) if not any(source.quantised for source in each.sources)]
    if len(set(plain)) == 1 and (len(plain) > 1 or plain[0] in FLOATING):
        return plain[0]
    if not set(plain) <= set(FLOATING):
        return None
    return "float64" if "float64" in plain else "float32"
