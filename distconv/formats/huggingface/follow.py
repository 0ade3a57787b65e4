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
from distconv.models.bind import Unconverted
from distconv.models.definition import Definition
from distconv.tensors.stored import NamedTensor, as_stored


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Tensors under the reference's names; tensors left out; the names of tensors taken from the reference."""

    tensors: tuple[NamedTensor, ...]
    left_out: tuple[Unconverted, ...]
    filled: tuple[str, ...]


def follow_reference(published: Published, definition: Definition, reference: Reference, *, fill: bool) -> Followed:
    """The published tensors of a source matched to its reference; arguments and errors are those of `follow`."""
    tied = definition.tied_sources() if published.tied else None
    return follow(published.tensors, definition.spelled, reference, tied=tied, fill=fill)


def follow(
    tensors: Sequence[NamedTensor],
    spelled: Callable[[str], str],
    reference: Reference,
    *,
    tied: tuple[str, str] | None,
    fill: bool,
) -> Followed:
    """The tensors under the names of the reference, in its order; unchanged if it names none.

    `spelled` maps a name of the reference to the spelling of the tensors; `tied`: the names of a head and of the
    embedding that it equals, `None` for an untied model; `fill`: tensors missing in the source come from the reference.

    Raises:
        InputError: every tensor in only one of the two, or of different shapes.
    """
    if reference.shard_files is None:
        return Followed(tensors=tuple(tensors), left_out=(), filled=())
    names = {spelled(name): name for name in reference.shard_files}
    head, embedding = tied or (None, None)
    found: dict[str, NamedTensor] = {}
    left_out = []
    unknown = []
    for tensor in tensors:
        if tensor.name in names:
            found[names[tensor.name]] = replace(tensor, name=names[tensor.name])
        elif tensor.name == head:
            reason = "tied: the reference has no head of its own"
            left_out += [Unconverted(tensor=source, reason=reason) for source in tensor.sources]
        else:
            unknown.append(tensor.name)
    if head in names and names[head] not in found and embedding in names and names[embedding] in found:
        found[names[head]] = replace(found[names[embedding]], name=names[head])
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
        tensors=tuple(complete[name] for name in reference.shard_files),
        left_out=tuple(left_out),
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
        if (stored := reference.index.tensors[name]).shape != tensor.tensor.shape
    ]
