"""The rows of the vocabulary in a result with published names.

Owns the choice: `vocab_size` rows, where it is given; else those of the reference, unless training trained more: rows
beyond them are left out where they are padding. Where they are not, those of Megatron-side parameters are kept: they
may have any number. Under published names a model has the rows of its configuration; another number is a contradiction.
Which they are is in the data, so a plan says what must be compared to know, and is made again where they were trained.
Reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from distconv.errors import InputError, counted, named, raise_if
from distconv.formats.base import Published
from distconv.formats.model import Model
from distconv.models.vocabulary import SIZE_NAME, nothing_to_resize, published_names, resized, resizing
from distconv.options import CommonOptions
from distconv.tensors.replicas import Replica, as_padding
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import narrow


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Published tensors with the rows of the result; `notes` say what was done.

    `padding`: what is equal where the rows that were left out are padding; a difference means that they were trained.
    """

    published: Published
    notes: tuple[str, ...] = ()
    padding: tuple[Replica, ...] = ()


def fit_vocabulary(published: Published, options: CommonOptions, model: Model) -> Fitted:
    """The published tensors of a source with the rows of the vocabulary that the result has.

    Raises:
        InputError: a source has fewer rows than its reference, or more under published names that are no padding;
            `vocab_size`, where nothing has a vocabulary.
    """
    wanted, definition = options.vocab_size, model.definition
    names = frozenset[str]() if definition is None else published_names(definition)
    spelled = str if definition is None else definition.spelled
    # Others are refused when they are bound.
    tensors = {
        each.name: each
        for each in published.tensors
        if spelled(each.name) in names and len(each.tensor.shape) == 2 and each.tensor.shape[0]
    }
    found = {name: each.tensor.shape[0] for name, each in tensors.items()}
    if not found:
        if wanted is not None:
            raise nothing_to_resize(wanted)
        return Fitted(published=published)
    known = model.sizes.get(SIZE_NAME)
    if model.reference is None and set(found.values()) != {known}:
        # A configuration of its own must be true of a source.
        return Fitted(published=published)
    where = model.config_path if model.reference is None else f"reference={model.reference.directory}"
    if wanted is None:
        raise_if(
            [
                f"{name}: the source has {rows} rows of the vocabulary, {where} says {known}; is it the model that "
                f"training began with? vocab_size={rows} publishes what is there"
                for name, rows in found.items()
                if rows < known
            ]
        )
    rows = wanted or (max(found.values()) if model.trained_rows else known)
    table = cache(resized)
    fitted = replace(
        published,
        tensors=tuple(
            replace(each, tensor=table(each.tensor, rows)) if found.get(each.name, rows) != rows else each
            for each in published.tensors
        ),
        rows=None if rows == known else rows,
    )
    if wanted is not None:
        return Fitted(published=fitted, notes=tuple(resizing(found, rows)))
    more = {name: count - known for name, count in found.items() if count > known}
    if not more:
        return Fitted(published=fitted)
    count = max(more.values())
    beyond = f"{named(more)}: {counted(count, 'row')} beyond the {known} of {where}"
    if model.trained_rows:
        trained = "trained, being neither zeros nor all equal"
        if not published.bound:
            raise InputError(
                f"{beyond}: {trained}; is it the model that training began with? vocab_size={rows} publishes what is "
                f"there, vocab_size={known} leaves them out"
            )
        note = f"{beyond}: kept as {trained}, so vocab_size is {rows}; vocab_size={known} leaves them out"
        return Fitted(published=fitted, notes=(note,))
    return Fitted(
        published=fitted,
        notes=(f"{beyond}: left out as padding, being zeros or all equal; vocab_size={known + count} keeps them",),
        padding=tuple(each for name in more for each in as_padding(_beyond(tensors[name], known))),
    )


def _beyond(tensor: NamedTensor, rows: int) -> NamedTensor:
    return replace(tensor, tensor=narrow(tensor.tensor, 0, rows, tensor.tensor.shape[0] - rows))
