"""Published tensors made to match a reference: all its tensors, under its names, and no others.

Owns the agreement of a result with its reference: spelling, the head of a tied model, tensors that only the reference
or only the source has. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distconv.errors import counted, named, raise_if
from distconv.formats.base import Published
from distconv.formats.model import Reference
from distconv.layout.tied_head import without_head
from distconv.models.definition import Definition
from distconv.models.parameters import Unconverted
from distconv.tensors.stored import NamedTensor, as_stored


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Tensors under the reference's names; tensors left out; the names of tensors taken from the reference."""

    tensors: tuple[NamedTensor, ...]
    left_out: tuple[Unconverted, ...]
    filled: tuple[str, ...]


def follow_reference(
    published: Published, definition: Definition, reference: Reference, *, fill: bool, tied_head: str = "auto"
) -> Followed:
    """The published tensors of a source as its reference has them; arguments and errors are those of `follow`."""
    tied = definition.tied_sources() if published.tied else None
    return follow(published.tensors, definition.spelled, reference, tied=tied, fill=fill, tied_head=tied_head)


def follow(
    tensors: Sequence[NamedTensor],
    spelled: Callable[[str], str],
    reference: Reference,
    *,
    tied: tuple[str, str] | None,
    fill: bool,
    tied_head: str = "auto",
) -> Followed:
    """The tensors under the names of the reference, in its order; unchanged if it names none.

    `spelled` gives the names of the tensors for those of the reference; `tied` the head and the embedding that it is
    tied to: a stored head is kept where the reference names one or `tied_head=keep`, else it is left out, and is a copy
    of the embedding where one is written; `fill`: what the source does not have comes from the reference.

    Raises:
        InputError: every tensor that only one of the two has, or that they have in different shapes; a stored head that
            cannot be equal to the embedding.
    """
    given = {each.name: each for each in tensors}
    head, embedding = tied or (None, None)
    left_out: tuple[Unconverted, ...] = ()
    listed = head in {spelled(name) for name in reference.shard_files or ()}
    kept_head = head if head in given and (tied_head == "keep" or (tied_head == "auto" and listed)) else None
    if kept_head is None and embedding in given and head in given:
        copied = replace(given[embedding], name=head)
        written = listed or (reference.shard_files is None and tied_head != "omit")
        reason = "written as a copy of the embedding" if written else "the reference has no head of its own"
        left_out = without_head(given.pop(head), copied, tied_head, f"tied: {reason}")
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
    problems = []
    if unknown:
        problems.append(
            f"reference={reference.directory}: does not name {counted(len(unknown), 'tensor')} of the source: "
            f"{named(unknown)}; is it the model that training began with?"
        )
    lacking = [name for name in absent if name not in filled]
    if lacking:
        advice = "it has no weights to fill in from" if fill else "fill_from_reference=true fills in from there"
        problems.append(
            f"reference={reference.directory}: names {counted(len(lacking), 'tensor')} that the source does not have: "
            f"{named(lacking)}; {advice}"
        )
    problems += _shape_problems(found, reference)
    raise_if(problems)
    complete = {**found, **filled}
    return Followed(
        tensors=tuple(complete[name] for name in names.values()),
        left_out=left_out,
        filled=tuple(filled),
    )


def _fillers(names: Sequence[str], reference: Reference) -> Mapping[str, NamedTensor]:
    if reference.index is None:
        return {}
    return {each.name: each for each in as_stored(reference.index.tensors[name] for name in names)}


def _shape_problems(found: Mapping[str, NamedTensor], reference: Reference) -> list[str]:
    if reference.index is None:
        return []
    return [
        f"{name}: is {list(tensor.tensor.shape)} in the source, {list(stored.shape)} in reference={reference.directory}"
        for name, tensor in found.items()
        if name in reference.index.tensors and (stored := reference.index.tensors[name]).shape != tensor.tensor.shape
    ]
