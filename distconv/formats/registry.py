"""The formats there are: a line for each, and the questions that are asked of all of them.

Owns the list, and which format a directory has. Nothing else names a format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

from distconv.formats.base import Format
from distconv.formats.dcp.format import Dcp
from distconv.formats.huggingface.format import HuggingFace
from distconv.formats.megatron.format import Megatron
from distconv.options import Options, default_of
from distconv.runtime.hand_out import Task

# In the order of the flow; of formats with equal evidence the first one reads a directory.
FORMATS: tuple[Format[Options], ...] = (
    HuggingFace(),
    Megatron(),
    Dcp(),
)


def format_named(name: str) -> Format[Options]:
    """The format that `target_format` or a report names."""
    return next(each for each in FORMATS if each.name == name)


def format_of(directory: Path) -> Format[Options]:
    """The format of a directory: the one with the clearest evidence."""
    return max(FORMATS, key=lambda each: each.evidence(directory))


def tasks() -> list[Task]:
    """The functions that reading hands out to processes."""
    return [task for each in FORMATS for task in each.tasks]


def contradictions(options: Options, source: Format[Options]) -> Iterator[str]:
    """The options that were given although a source or a result of these formats does not take them, in words."""
    target = format_named(options.target_format)
    found = f"source={options.source} is {source.title}"
    for key, given in _given(options).items():
        either = [each for each in FORMATS if key in each.takes.either]
        reading = [each for each in FORMATS if key in each.takes.source]
        writing = [each for each in FORMATS if key in each.takes.target]
        if either and source not in either and target not in either:
            yield f"{key}: goes with a {_nouns(either)}; {found}"
        if reading and source not in reading:
            yield f"{key}: goes with a {_nouns(reading)} source; {found}"
        if writing and not _takes(target, key, options):
            why = target.takes.refusals.get(key)
            yield from (f"{each}: {why or _who_takes(key, writing)}" for each in given)
    if source is target and not target.holds_iterations:
        yield f"target_format={target.name}: {found} already"


def _given(options: Options) -> dict[str, list[str]]:
    """The options that differ from their defaults: of each field, its name or those of the group's members."""
    given = {}
    taken = {key for each in FORMATS for key in (*each.takes.source, *each.takes.target, *each.takes.either)}
    for option in fields(options):
        if option.name not in taken:
            continue
        value, default = getattr(options, option.name), default_of(option)
        if value != default:
            members = [each.name for each in fields(value)] if is_dataclass(value) else []
            different = [each for each in members if getattr(value, each) != getattr(default, each)]
            given[option.name] = [f"{option.name}.{each}" for each in different] or [option.name]
    return given


def _takes(target: Format[Options], key: str, options: Options) -> bool:
    if key not in target.takes.target:
        return False
    name, _, value = target.takes.target[key].partition("=")
    return not name or getattr(options, name) == value


def _who_takes(key: str, formats: list[Format[Options]]) -> str:
    conditions = [each.name + (f" and {when}" if (when := each.takes.target[key]) else "") for each in formats]
    return f"goes with target_format={', or '.join(conditions)}"


def _nouns(formats: list[Format[Options]]) -> str:
    return " or ".join(each.noun for each in formats)
