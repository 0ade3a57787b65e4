"""Published tensors made to match a reference: all its tensors, under its names, and no others.

Owns the agreement of a result with its reference: spelling, the head of a tied model, tensors that only the reference
or only the source has. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from distconv.errors import InputError, counted, named, raise_if
from distconv.formats.base import Published
from distconv.formats.config_dtypes import says_quantised
from distconv.formats.model import Model, Reference
from distconv.layout.tied_head import without_head
from distconv.models.adapters import belongs_to_adapter, plain_name
from distconv.models.definition import Definition
from distconv.models.experts import as_published
from distconv.models.language_model import head_and_embedding, is_tied
from distconv.models.names import Explanations, pattern_of
from distconv.models.parameters import Unconverted
from distconv.models.vocabulary import published_names
from distconv.tensors.stored import NamedTensor, as_stored

# The advice about a part that the source does not hold at all.
FILL = "fill_from_reference=true fills in from there"
# The advice about what the reference does not name, or in another shape.
_OTHER_MODEL = "is it the model that training began with?"
# The advice about names of adapters among them.
_ADAPTERS = "an adapter that is not merged: +model=NAME_lora converts it, or let PEFT merge it first"
_NOTHING_TO_FILL_IN = "it has no weights to fill in from"
# The advice about what cannot be filled in.
COMPLETE = "is the source complete, and this the model that training began with?"


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Tensors under the reference's names; tensors left out; the names of tensors taken from the reference.

    `notes` are sentences for the report.
    """

    tensors: tuple[NamedTensor, ...]
    left_out: tuple[Unconverted, ...]
    filled: tuple[str, ...]
    notes: tuple[str, ...] = ()


def follow_reference(published: Published, model: Model, *, fill: bool, tied_head: str = "auto") -> Followed:
    """The published tensors of a source as the reference has them, its experts packed as there.

    `fill` and `tied_head` are those of `follow`.

    Raises:
        InputError: as `follow`; the reference is of a larger model, and names no tensors; experts that are not
            complete, or in no known layout.
    """
    definition, reference, experts = model.definition, model.followed, model.spellings.experts
    if definition is not None:
        _check_part(definition, reference)
    spelled = _spelling(model, reference)
    forms = experts.forms({spelled(name): shape for name, shape in reference.shapes.items()})
    # Without names to follow, it is published as the family is.
    unknown = as_published if reference.shard_files is None else lambda _, form: form
    tensors = experts.respelled(published.tensors, lambda layer, form: forms.get(layer, unknown(layer, form)))
    return follow(
        tensors,
        spelled,
        reference,
        tied=tie_of(published.tensors, model),
        fill=fill,
        tied_head=tied_head,
        resized=frozenset() if definition is None or published.rows is None else published_names(definition),
        remedy=(lambda _: FILL) if definition is None else _remedies(tensors, definition, reference),
    )


def _check_part(definition: Definition, reference: Reference) -> None:
    """Raise `InputError` for a reference of a larger model than the definition knows that names no tensors."""
    if reference.shard_files is None and definition.part_of is not None and definition.part_of in reference.config:
        raise InputError(
            f"reference={reference.directory}: config.json has {definition.part_of}, so it is of a larger model than "
            f"model definition {definition.name} knows, and names no tensors; give a reference that does: with "
            "weights, or with model.safetensors.index.json"
        )


def _spelling(model: Model, reference: Reference) -> Callable[[str], str]:
    """The function from names of the reference to those of the source."""
    if model.definition is not None:
        return model.definition.spelled
    _, holding = model.spellings.naming_of(reference.shard_files or ())
    return holding.published


def tie_of(tensors: Sequence[NamedTensor], model: Model) -> tuple[str, str] | None:
    """The names of the head and the embedding that it is tied to among published tensors; nothing if it is not.

    Without a definition, and where the configuration does not say whether it is, it is where the reference names the
    embedding alone.
    """
    definition = model.definition
    if definition is not None:
        if definition.adapters == "only" or not definition.is_tied(model.sizes):
            return None
        names = {definition.spelled(each.name): each.name for each in tensors}
        head, embedding = definition.tied_sources(names)
        return names.get(head, head), names.get(embedding, embedding)
    found = head_and_embedding({each.name for each in tensors})
    says = is_tied(model.config)
    if found is None or says is False:
        return None
    listed = (model.reference and model.reference.shard_files) or {}
    by_names = found[1] in listed and found[0] not in listed
    return found if says or by_names else None


def _remedies(tensors: Sequence[NamedTensor], definition: Definition, reference: Reference) -> Callable[[str], str]:
    """What to do about a tensor of the reference that the source does not have, in words.

    Only a part that the source does not hold at all is to be filled in: anything else would be another model.
    """

    @cache
    def explanations() -> Explanations:
        held = {
            modality
            for modality in definition.modalities
            for pattern in (pattern_of(rule for rule in definition.rules if rule.modality == modality),)
            if any(pattern.fullmatch(each.name) for each in tensors)
        }
        reasons = {rule: None if rule.modality in held else "another modality" for rule in definition.rules}
        return Explanations(definition, reasons, reference.sizes(definition))

    def remedy(name: str) -> str:
        explain, spelled = explanations(), definition.spelled(name)
        if explain.reason(name) is not None or explain.reason(spelled) is not None:
            return FILL
        if not explain.fits(spelled) and belongs_to_adapter(name):
            return "they are adapters: give the model without them"
        if not explain.fits(spelled) and says_quantised(reference.config):
            return "it is quantised, and they go with its own weights: give the model as it was before"
        return COMPLETE

    return remedy


def follow(
    tensors: Sequence[NamedTensor],
    spelled: Callable[[str], str],
    reference: Reference,
    *,
    tied: tuple[str, str] | None,
    fill: bool,
    tied_head: str = "auto",
    resized: Container[str] = (),
    remedy: Callable[[str], str] = lambda _: FILL,
) -> Followed:
    """The tensors under the names of the reference, in its order; unchanged if it names none.

    `spelled` gives the names of the tensors for those of the reference; `tied` the head and the embedding that it is
    tied to: a stored head is kept where the reference names one or `tied_head=keep`, else it is left out, and is a copy
    of the embedding where one is written; `fill`: what the source does not have comes from the reference; `resized`:
    names of tensors that have other rows than the reference's; `remedy`: the words about what only the reference has.

    Raises:
        InputError: every tensor that only one of the two has, or that they have in different shapes; a stored head that
            cannot be equal to the embedding.
    """
    given = {each.name: each for each in tensors}
    head, embedding = tied or (None, None)
    left_out: tuple[Unconverted, ...] = ()
    listed = head in {spelled(name) for name in reference.shard_files or ()}
    kept_head = head if head in given and (tied_head == "keep" or (tied_head == "auto" and listed)) else None
    notes: tuple[str, ...] = ()
    if kept_head is not None and tied_head == "auto":
        reader = "whose config.json ties it: readers may take the embedding instead; tied_head=keep unties it"
        notes = (
            f"{kept_head}: is written as the source has it, as reference={reference.directory} names it, {reader}",
        )
    if kept_head is None and embedding in given and head in given:
        copied = replace(given[embedding], name=head)
        written = listed or (reference.shard_files is None and tied_head != "omit")
        reason = "written as a copy of the embedding" if written else "the reference has no head of its own"
        left_out = (without_head(given.pop(head), copied, tied_head, f"tied: {reason}"),)
        given |= {head: copied} if written else {}
    if reference.shard_files is None:
        return Followed(tensors=tuple(given.values()), left_out=left_out, filled=())
    names = {spelled(name): name for name in reference.shard_files}
    if kept_head is not None and embedding in names:
        stem, found_stem, _ = names[embedding].rpartition(embedding)
        names.setdefault(kept_head, stem + kept_head if found_stem else kept_head)
    if head in names and head not in given and embedding in given:
        given[head] = replace(given[embedding], name=head)
    found = {names[name]: replace(each, name=names[name]) for name, each in given.items() if name in names}
    unknown = [name for name in given if name not in names]
    absent = [name for name in reference.shard_files if name not in found]
    filled = _fillers(absent, reference) if fill else {}
    lacking = [name for name in absent if name not in filled]
    raise_if(
        [
            *_unknown_problems(unknown, reference),
            *_lacking_problems(lacking, unknown, reference, remedy if not fill else lambda _: _NOTHING_TO_FILL_IN),
            *_shape_problems(found, reference, {own for name, own in names.items() if name in resized}),
        ]
    )
    complete = {**found, **filled}
    return Followed(
        tensors=tuple(complete[name] for name in names.values()),
        left_out=left_out,
        filled=tuple(filled),
        notes=notes,
    )


def _fillers(names: Sequence[str], reference: Reference) -> Mapping[str, NamedTensor]:
    if reference.index is None:
        return {}
    return {each.name: each for each in as_stored(reference.index.tensors[name] for name in names)}


def _is_of_adapter(name: str) -> bool:
    return belongs_to_adapter(name) or plain_name(name) != name


def _unknown_problems(names: Sequence[str], reference: Reference) -> Iterator[str]:
    """The problems of tensors of the source that the reference does not name."""
    adapters = list(filter(_is_of_adapter, names))
    others = [name for name in names if not _is_of_adapter(name)]
    for those, advice in ((others, _OTHER_MODEL), (adapters, _ADAPTERS)):
        if those:
            yield (
                f"reference={reference.directory}: does not name {counted(len(those), 'tensor')} of the source: "
                f"{named(those)}; {advice}"
            )


def _lacking_problems(
    names: Sequence[str], unknown: Sequence[str], reference: Reference, remedy: Callable[[str], str]
) -> Iterator[str]:
    """The problems of tensors of the reference that the source lacks, which has `unknown` ones instead."""
    # What has other tensors as well is no part of the model, which could be completed.
    is_part = all(map(_is_of_adapter, unknown))
    by_remedy: dict[str, list[str]] = {}
    for name in names:
        advice = remedy(name)
        by_remedy.setdefault(COMPLETE if advice == FILL and not is_part else advice, []).append(name)
    for advice, those in by_remedy.items():
        yield (
            f"reference={reference.directory}: names {counted(len(those), 'tensor')} that the source does not have: "
            f"{named(those)}; {advice}"
        )


def _shape_problems(found: Mapping[str, NamedTensor], reference: Reference, resized: Container[str]) -> list[str]:
    stored = {} if reference.index is None else reference.index.tensors
    return [
        f"{name}: is {list(tensor.tensor.shape)} in the source, {list(stored[name].published_shape)} in "
        f"reference={reference.directory}; {_OTHER_MODEL}"
        for name, tensor in found.items()
        if name in stored and stored[name].published_shape[name in resized :] != tensor.tensor.shape[name in resized :]
    ]
