"""The registry of formats, and the functions over all formats.

Owns the list of formats, the recognition of a directory's format, and the check that options apply to source and
target. No other module names a format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distconv.errors import InputError, named
from distconv.fields import Record, option
from distconv.formats.base import Evidence, Format
from distconv.formats.dcp.format import Dcp
from distconv.formats.dcp.options import DcpOptions
from distconv.formats.element_types import CAST_OPTIONS
from distconv.formats.foreign import foreign_problem, foreign_problem_in
from distconv.formats.huggingface.format import HuggingFace
from distconv.formats.huggingface.options import HuggingFaceOptions
from distconv.formats.iterations import Place, iteration_in
from distconv.formats.megatron.format import Megatron
from distconv.formats.model import MODEL_CONFIG
from distconv.formats.torch_dist.format import TorchDist
from distconv.kinds import Choice
from distconv.options import KEEP, REFERENCE
from distconv.runtime.hand_out import Task


@dataclass(frozen=True, kw_only=True)
class Options(HuggingFaceOptions, DcpOptions):
    """The options of a job, those of all formats included; the model definition is given beside them."""

    target_format: str = option(
        Choice(
            lambda: {each.name: each.words for each in FORMATS},
            lambda: {word: each.name for each in FORMATS for word in each.elsewhere},
        ),
        "megatron",
        "format of the result",
    )


# In order of priority for equal evidence.
FORMATS: tuple[Format[Options], ...] = (
    HuggingFace(),
    Megatron(),
    TorchDist(),
    Dcp(),
)


# Directories in which checkpoints are looked for to tell of them.
_SEARCHED = 100


def format_named(name: str) -> Format[Options]:
    """The format with this `name`."""
    return next(each for each in FORMATS if each.name == name)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The formats of which a directory, or the iteration of it that is converted, has the strongest evidence.

    `formats`: in order of priority; `where`: the directory that there is `evidence` of; `places`: the directory, which
    comes first, and the iteration that is converted, or all of them if that is not known.
    """

    formats: tuple[Format[Options], ...]
    evidence: Evidence
    where: Place
    places: tuple[Place, ...]

    @property
    def form(self) -> Format[Options]:
        """The format as which the directory is read, whatever it is."""
        return self.formats[0]

    @property
    def mixed_problem(self) -> str | None:
        """Why it is not clear which checkpoint the directory is, in words; `None` if it is."""
        if len(self.formats) == 1 or not self.form.holds_iterations or self.evidence != Evidence.HERE:
            return None
        titles = " and ".join(each.title for each in self.formats)
        advice = "leave the files of one of them there, and move the others away"
        return f"{self.where.path}: holds {titles} in one directory; {advice}"


def found_in(directory: Path, iteration: str | None = None) -> Found:
    """The formats of a directory.

    Of one with iterations it is that of `iteration`, by default the tracker's; of all of them only if it is in none,
    since they may be hundreds.

    Raises:
        InputError: iterations are in several formats, and the tracker cannot be read.
    """
    place = Place(directory)
    formats, evidence = _strongest(place)
    if evidence is Evidence.HERE or not place.iterations:
        return Found(formats=formats, evidence=evidence, where=place, places=(place,))
    failure = None
    try:
        chosen = Place(iteration_in(place, iteration))
        found, strength = _strongest(chosen)
        if strength is Evidence.HERE:
            return Found(formats=found, evidence=strength, where=chosen, places=(place, chosen))
    except InputError as error:
        # Where there is no such iteration, whoever reads the directory says so.
        failure = error
    below = tuple(form for form in FORMATS if any(form.evidence(each) is Evidence.HERE for each in place.iterations))
    if failure is not None and failure.unreadable and len(below) > 1:
        raise failure
    if below:
        formats, evidence = below, Evidence.BELOW
    return Found(formats=formats, evidence=evidence, where=place, places=(place, *place.iterations))


def _strongest(place: Place) -> tuple[tuple[Format[Options], ...], Evidence]:
    """The formats of which a directory itself has the strongest evidence, in order of priority, and that evidence."""
    found = {form: form.evidence(place) for form in FORMATS}
    strongest = max(found.values())
    return tuple(form for form in FORMATS if found[form] is strongest), strongest


def unknown_problem(found: Found, key: str) -> str | None:
    """Why the directory of option `key` is no checkpoint, in words, and what in it is one; `None` if it is one."""
    if (problem := foreign_problem_in(found.places, key)) or found.evidence:
        return problem
    directory = found.places[0].path
    within = _directories_in(directory)
    for path in within:
        if problem := foreign_problem(path, key):
            return problem
    known = [path for path in within if _is_known(path)]
    known = known or [each for path in within[:_SEARCHED] for each in _directories_in(path) if _is_known(each)]
    if known:
        return f"{key}={directory}: is no checkpoint itself; {_choice(known, directory, key)}"
    if not (names := sorted(os.listdir(directory))):
        return f"{key}={directory}: is empty: nothing was saved or downloaded there, or its file system is not mounted"
    expected = f"is none of: {', '.join(each.title for each in FORMATS)} ({directory / MODEL_CONFIG}: no such file)"
    return f"{key}={directory}: {expected}; it holds {named(names, 3)}"


def _directories_in(directory: Path) -> list[Path]:
    """The directories in a directory that are not hidden; none where it cannot be read, since that is for advice."""
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _is_known(directory: Path) -> bool:
    return found_in(directory).evidence is not Evidence.NONE


def _choice(known: list[Path], directory: Path, key: str) -> str:
    """Which checkpoints a directory holds, and what to type to take one, in words: the one with the largest number."""
    ordered = sorted(known, key=lambda path: [int(each) if each.isdecimal() else each for each in _parts(path)])
    names = named([path.relative_to(directory) for path in ordered])
    if len(ordered) == 1:
        return f"it holds one, {names}: give {key}={ordered[0]}"
    several = "; sources= converts several" if key == "source" else ""
    return f"it holds {len(ordered)}: {names}; give one of them, such as {key}={ordered[-1]}{several}"


def _parts(path: Path) -> list[str]:
    """A path as texts and digits in turn."""
    return re.split(r"([0-9]+)", str(path))


def tasks() -> list[Task]:
    """The functions that readers of all formats hand out to processes."""
    return [task for each in FORMATS for task in each.tasks]


def target_contradictions(options: Options) -> Iterator[str]:
    """Given options that do not apply to a result in `target_format`, as problems in words."""
    target = format_named(options.target_format)
    for key in options.given():
        writing = [each for each in FORMATS if key in each.takes.target]
        if writing and not _takes(target, key, options):
            why = target.takes.refusals.get(key) or _who_takes(key, writing)
            group = getattr(options, key)
            members = [f"{key}.{each}" for each in group.given()] if isinstance(group, Record) else [key]
            yield from (f"{each}: {why}" for each in members)


def source_contradictions(options: Options, source: Format[Options]) -> Iterator[str]:
    """Given options that do not apply to a source in this format, as problems in words."""
    target = format_named(options.target_format)
    found = f"source={options.source} is {source.title}"
    for key in options.given():
        either = [each for each in FORMATS if key in each.takes.either]
        reading = [each for each in FORMATS if key in each.takes.source]
        if either and source not in either and target not in either:
            yield f"{key}: goes with a {_nouns(either)}; {found}"
        if reading and source not in reading:
            yield f"{key}: goes with a {_nouns(reading)} source; {found}"
    if source is target and not target.holds_iterations:
        again = target.takes.again
        if options.dtype in (KEEP, REFERENCE) and again.isdisjoint(options.given()):
            advice = "; dtype=bfloat16, say, makes another of it" if "dtype" in target.takes.target else ""
            yield f"target_format={target.name}: {found} already{advice}"
        for key in options.given():
            if key in target.takes.target and key not in again and key not in CAST_OPTIONS:
                yield f"{key}: goes with a source in another format; {found}"


def _takes(target: Format[Options], key: str, options: Options) -> bool:
    if key not in target.takes.target:
        return False
    name, _, value = target.takes.target[key].partition("=")
    return not name or getattr(options, name) == value


def _who_takes(key: str, formats: list[Format[Options]]) -> str:
    always = [each.name for each in formats if not each.takes.target[key]]
    sometimes = [f"{each.name} and {when}" for each in formats if (when := each.takes.target[key])]
    return f"goes with target_format={', or '.join([*filter(None, [_or(always)]), *sometimes])}"


def _nouns(formats: list[Format[Options]]) -> str:
    return _or([each.noun for each in formats])


def _or(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
