"""Recognition of the dialect of published names in a checkpoint, and of whether a prefix is that of all of a model.

Owns the choice where several would fit. Pure; `prefix` matches the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from distconv.errors import InputError, raise_if
from distconv.formats.dcp.prefix import common_prefix, count_known, find_prefix, names_under, of_training
from distconv.formats.model import Model
from distconv.models.dialect import Holding
from distconv.models.wrappers import unwrapped


def is_under_one_prefix(found: Collection[str], held: set[str], given: str | None) -> bool:
    """Whether few known names tell the prefix of a model; they do not if parts of it have other names in front.

    Nor if one is given: without names to compare with, any may be right.
    """
    if given is not None or not count_known(found, held):
        return False
    prefix = find_prefix(found, held)
    return all(of_training(name) or unwrapped(name).startswith(prefix) for name in found)


def naming_of(
    found: Collection[str], known: set[str], prefix: str | None, dialect: str | None, model: Model
) -> tuple[str, Holding]:
    """The dialect whose names a checkpoint has: the given one, or the one under which most names are known.

    Of those under which as many are, it is one that leaves no name of the model beside them, and that the other names
    tell. `prefix`: the given one.
    """
    namings = list(model.spellings.namings())
    if dialect is None and len(namings) == 1:
        return namings[0]
    held = {name: {holding.held(each) for each in known} for name, holding in namings}
    counts = {name: count_known(found, held[name], prefix) for name, _ in namings}
    if dialect is not None:
        holding = model.spellings.chosen(dialect, "source_dialect")[1]
        _check_given(dialect, count_known(found, {holding.held(each) for each in known}, prefix), counts, model)
        return dialect, holding
    bare: dict[str, list[str]] = {}
    for name in (name for name, _ in namings if counts[name] == max(counts.values())):
        if counts[name]:
            known_prefix = find_prefix(found, held[name], prefix)
        else:
            known_prefix = common_prefix(found) if prefix is None else unwrapped(prefix)
        bare[name] = [each for each, full in names_under(found, known_prefix).items() if not of_training(full)]
    most = max(map(len, bare.values()))
    best = [(name, holding) for name, holding in namings if name in bare and len(bare[name]) == most]
    return next((each for each in best if each[1].is_told_by(bare[each[0]])), best[0])


def _check_given(dialect: str, count: int, counts: Mapping[str, int], model: Model) -> None:
    """Raise `InputError` for a dialect in which fewer names are the reference's, if it names any, than in another."""
    most = max(counts, key=lambda name: counts[name])
    if model.reference is not None and model.reference.shard_files is not None and counts[most] > count:
        raise InputError(
            f"source_dialect={dialect}: then {count or 'none'} of the names in the source are those of "
            f"reference={model.reference.directory}, but {counts[most]} with the names of {most}; leave "
            "source_dialect out"
        )


def check_exchange(wanted: Mapping[str, str], bare: Mapping[str, str], holding: Holding, naming: str) -> None:
    """Raise `InputError` for names that would not be the same after going back and forth, or that become one."""
    astray = [full for full, name in wanted.items() if holding.held(name) != bare[full]]
    twice = [name for name, count in Counter(wanted.values()).items() if count > 1]
    raise_if(
        [f"{full}: the dialect {naming} has no such name; give another source_dialect" for full in astray]
        + [f"{name}: two tensors of the source would have this name; give another source_dialect" for name in twice]
    )
