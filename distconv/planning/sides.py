"""The two checkpoints that are compared: each looked at as the source of a conversion is, in whatever format.

Owns the options by which the target is read as a source, in what is said of it, too, and what says of which model a
side is that does not describe itself: its own reference, or else the other side. Read are headers, metadata and JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from distconv.errors import InputError, raise_if
from distconv.formats.base import Format, Opened
from distconv.formats.config_dtypes import says_quantised
from distconv.formats.provenance import Provenance, read_provenance
from distconv.formats.registry import Options, source_contradictions
from distconv.layout.request import Layout, SourceLayout
from distconv.models.library import Library, head_of
from distconv.planning.choice import Chosen
from distconv.planning.facts import Facts
from distconv.planning.look import facts_of, format_in, opened_as_any
from distconv.runtime.hand_out import HandOut, here

T = TypeVar("T")
_KEYS = SOURCE, TARGET = "source", "target"
# What options of a source are called that are said of the target; and the word, where it is no part of a path.
_OPTION_OF_SOURCE = re.compile(r"\bsource_(?=layout\b|dialect\b)")
_WORD = re.compile(r"(?<![\w/.-])source(?![\w/.-])")


@dataclass(frozen=True, kw_only=True)
class Side:
    """A checkpoint that is compared: the option that names it, the options by which it is read, and its facts."""

    key: str
    options: Options
    facts: Facts

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        reference = self.options.reference
        return {
            "key": self.key,
            "dtype": self.options.dtype,
            "reference": None if reference is None else str(reference),
            "facts": self.facts.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], options: Options) -> Side:
        """The side in the data of `to_json`, of a job with these options."""
        key, reference = data["key"], data["reference"]
        read = replace(
            as_source(options, key),
            dtype=data["dtype"],
            reference=None if reference is None else Path(reference),
        )
        return Side(key=key, options=read, facts=Facts.from_json(data["facts"]))


def as_source(options: Options, key: str) -> Options:
    """The options by which the directory of option `key` is read."""
    read = replace(options, action="inspect", layout=Layout(), dialect=None)
    if key == SOURCE:
        return read
    if not options.layout.check:
        raise InputError("layout.check: is of a result; with action=diff, layout says how the target is cut")
    layout = {each: getattr(options.layout, each) for each in options.layout.given()}
    return replace(read, source=options.target, source_layout=SourceLayout(**layout), source_dialect=options.dialect)


def said_of(key: str, make: Callable[[], T]) -> T:
    """What `make` makes of the side of option `key`; its problems name the options of that side.

    Raises:
        InputError: as `make`.
    """
    try:
        return make()
    except InputError as error:
        if key == SOURCE:
            raise
        problems = [_WORD.sub(key, _OPTION_OF_SOURCE.sub("", each)) for each in error.problems]
        raise InputError(problems, unreadable=error.unreadable) from None


def look_at_both(
    options: Options, chosen: Chosen | None, library: Library, hand_out: HandOut = here
) -> tuple[Side, Side]:
    """Both sides of a comparison; `chosen` is the definition that the user named.

    Raises:
        InputError: a directory that is no checkpoint, options that do not apply, or nothing that says what model it is.
    """
    reads = {key: as_source(options, key) for key in _KEYS}
    forms = _both(lambda key: format_in(reads[key], key))
    if any(_takes_reference(form) for form in forms.values()):
        # It is said of those that take one.
        kept = {key: read.reference if _takes_reference(forms[key]) else None for key, read in reads.items()}
        reads = {key: replace(read, reference=kept[key]) for key, read in reads.items()}
    _both(lambda key: raise_if(list(source_contradictions(reads[key], forms[key]))))
    if options.iteration is not None and not any(form.holds_iterations for form in forms.values()):
        raise InputError(f"iteration={options.iteration}: neither source nor target holds iterations; leave it out")
    opened = _both(lambda key: _opened(forms[key], reads[key], hand_out))
    sides: dict[str, Side] = {}
    # Those that say what they are come first: the other one is taken for the same model, where it can be.
    for key in sorted(_KEYS, key=lambda each: _silence(*opened[each])):
        read, there = opened[key]
        silence, taken = _silence(read, there), chosen
        for other in sides.values():
            if silence.is_undescribed:
                read = replace(read, reference=_reference_of(other.facts))
            if silence.is_unnamed:
                taken = taken or _definition_of(other.facts, there)
        sides[key] = said_of(key, partial(_side, key, forms[key], read, there, taken, library))
    return sides[SOURCE], sides[TARGET]


def _both(make: Callable[[str], T]) -> dict[str, T]:
    """What `make` makes of both sides, by their options; the problems of both at once."""
    made: dict[str, T] = {}
    problems: list[str] = []
    for key in _KEYS:
        try:
            made[key] = said_of(key, partial(make, key))
        except InputError as error:
            problems += error.problems
    raise_if(problems)
    return made


def _takes_reference(form: Format[Options]) -> bool:
    return "reference" in form.takes.source


def _opened(form: Format[Options], read: Options, hand_out: HandOut) -> tuple[Options, Opened]:
    """A side with located files; quantised weights are read as numbers."""
    opened = opened_as_any(form, read, hand_out)
    if opened.config is None or not says_quantised(opened.config):
        return read, opened
    read = replace(read, dtype="bfloat16")
    return read, opened_as_any(form, read, hand_out)


class _Silence(NamedTuple):
    """What a side does not say of itself: which model it is, and the name of its definition."""

    is_undescribed: bool
    is_unnamed: bool


def _silence(read: Options, opened: Opened) -> _Silence:
    record = read_provenance(opened.directory) if opened.config is None else Provenance()
    undescribed = opened.config is None and read.reference is None and record.reference is None
    return _Silence(undescribed, record.model is None)


def _definition_of(known: Facts, opened: Opened) -> Chosen | None:
    """The definition of one side for the other, if this is an adapter, or has a `model_type` that it is for."""
    if known.model is None:
        return None
    config = None if opened.adapters else opened.config
    fits = config is None or config.get("model_type") in (head_of(known.definition).get("model_types") or ())
    return (known.model, known.definition) if fits else None


def _reference_of(facts: Facts) -> Path | None:
    """The published directory that says what model a side is, if one does."""
    if facts.reference is not None:
        return Path(facts.reference.directory)
    return None if facts.source.config is None else Path(facts.source.directory)


def _side(
    key: str, form: Format[Options], read: Options, opened: Opened, chosen: Chosen | None, library: Library
) -> Side:
    by_names = read.reference is None and opened.names_suffice
    facts = facts_of(read, form, opened, chosen, library, needed=False, by_names=by_names)
    if facts.model is None and opened.config is None and not opened.names_suffice:
        raise InputError(
            f"source={read.source}: is {form.title}, whose tensors only a model definition gives published names, and "
            f"none is for the model in {_reference_of(facts)}; name one with +model=NAME"
        )
    return Side(key=key, options=read, facts=facts)
