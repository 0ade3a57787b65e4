"""A plan for a person, in the 80 columns of a terminal; paths and names alone may be longer.

Owns its wording, except for the lines of formats. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distconv.cli.process_table import node_words, process_table
from distconv.cli.training_text import training_lines
from distconv.errors import counted, named
from distconv.formats.registry import format_named
from distconv.words import binary, folded, names_by_reason

_FILES_SHOWN = 16
_COLUMN = 9


def plan_text(report: Mapping[str, Any], *, full: bool) -> str:
    """The plan for a person: model and layout, stages, tensors left out, and with `full` files and processes."""
    lines = [*_job(report), *_casts(report), *_left_out(report)]
    notes = report["notes"][len(report["not_checked"]) :]
    lines += ["", *(line for note in notes[:_FILES_SHOWN] for line in folded("note: ", note))] if notes else []
    if full:
        lines += training_lines(report["training"])
        files = report["files"]
        lines += ["", f"files    {len(files)}, {binary(sum(file['bytes'] for file in files))} of tensors"]
        lines += [f"  {file['path']}  {binary(file['bytes'])}" for file in files[:_FILES_SHOWN]]
        if len(files) > _FILES_SHOWN:
            lines.append(f"  … and {len(files) - _FILES_SHOWN} more")
        lines += ["", process_table(report["processes"])]
        lines += folded("", node_words(report["nodes"])) if report["nodes"] else []
    return "\n".join(lines)


def _job(report: Mapping[str, Any]) -> Iterator[str]:
    """From where to where, and how the result is cut; a path is in one line, however long."""
    yield f"model    {report['model'] or 'any: by published names, without a definition'}"
    for each in report["not_checked"]:
        yield from folded("unchecked: ", each)
    yield f"source   {report['source']}"
    if report["text_source"]:
        yield f"text     {report['text_source']}"
    yield from _fitted(format_named(report["source_format"]).source_words(report))
    if report["source_record"]:
        yield f"         completed from {report['source_record']}"
    if report["reference"]:
        yield f"follows  {report['reference']}"
    yield f"target   {report['target']}{f'/{iteration}' if (iteration := report['iteration']) else ''}"
    yield from _fitted(format_named(report["target_format"]).target_words(report))


def _casts(report: Mapping[str, Any]) -> Iterator[str]:
    """What is cast, and what is not where the rest is."""
    for each in report["casts"]["cast"]:
        what = f"{counted(each['tensors'], 'tensor')}, {binary(each['bytes'])}"
        yield from folded("cast     ", f"{each['from']} to {each['to']}: {what}")
    for each in report["casts"]["kept"]:
        what = f"{counted(len(each['names']), 'tensor')} as stored: {each['reason']}"
        yield from folded("kept     ", f"{what}: {named(each['names'], 2)}")


def _left_out(report: Mapping[str, Any]) -> Iterator[str]:
    """The tensors that are not converted, by reason."""
    if report["not_converted"]:
        yield from ("", "not converted")
    for reason, names in names_by_reason(report["not_converted"]).items():
        yield from folded(f"  {counted(len(names), 'tensor')}: ", f"{reason}: {named(names, 2)}")


def _fitted(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a format, with labels; its tables fit already."""
    for line in lines:
        yield from [line] if "\n" in line else folded(line[:_COLUMN], line[_COLUMN:])
