"""The description of a checkpoint directory: format, model, layout, tensors, and problems.

Owns the description as plain data. Reads headers, metadata and JSON, never tensor data, and needs no target.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from distconv.errors import InputError, counted
from distconv.formats.base import Format, Held, Opened, Source
from distconv.formats.config_dtypes import says_quantised
from distconv.formats.huggingface.directory import check_directory
from distconv.formats.model import Model
from distconv.formats.provenance import Provenance, newer_note, read_provenance
from distconv.formats.recorded_files import check_inside, wrong_sizes
from distconv.formats.registry import Options, found_in, unknown_problem
from distconv.models.definition_parser import parse_definition
from distconv.models.library import Library
from distconv.planning.choice import Chosen
from distconv.planning.fit_vocabulary import fit_vocabulary
from distconv.planning.look import facts_of, opened_as_any
from distconv.runtime.hand_out import HandOut, here
from distconv.tensors.dtypes import ITEM_SIZE

# The least share of known names with which a definition resembles a source.
_LEAST_LIKENESS = 0.5
_DIGITS = re.compile(r"\d+")


def describe(options: Options, chosen: Chosen | None, library: Library, hand_out: HandOut = here) -> dict[str, Any]:
    """Describe the directory `source` as plain data; sizes in bytes, `tensors` as lists of file, name, dtype and shape.

    `problems`: the errors of a conversion, which are not raised here; `notes`: its notes.

    Raises:
        InputError: no such directory.
    """
    check_directory(options.source, "source")
    recognised = found_in(options.source, options.iteration)
    form = recognised.form
    report: dict[str, Any] = {
        "action": "inspect",
        "source": str(options.source),
        "source_format": None,
        "title": None,
        "iteration": None,
        "iterations": [each.path.name for each in recognised.places[0].iterations] if form.holds_iterations else [],
        "model": None,
        "model_type": None,
        "resembles": [],
        "reference": None,
        "source_layout": None,
        "source_names": None,
        "parameters": None,
        "bytes": None,
        "dtypes": {},
        "record": None,
        "notes": [],
        "problems": [],
        "tensors": [],
    }
    if recognised.evidence:
        report |= {"source_format": form.name, "title": form.title}
    else:
        report["problems"] = [str(unknown_problem(recognised, "source"))]
    if (problem := recognised.mixed_problem) is not None:
        return {**report, "problems": [problem]}
    try:
        opened = opened_as_any(form, options, hand_out)
    except InputError as error:
        return {**report, "problems": report["problems"] + error.problems}
    found = report | _contents(options, form, opened, chosen, library, hand_out)
    says = _of_record(opened.directory)
    joint = {key: list(dict.fromkeys([*found[key], *says[key]])) for key in ("notes", "problems")}
    return {**found, **says, **joint}


def _contents(
    options: Options,
    form: Format[Options],
    opened: Opened,
    chosen: Chosen | None,
    library: Library,
    hand_out: HandOut,
) -> dict[str, Any]:
    """The part of the description that depends on the files of a source."""
    held = list(opened.held())
    report = {
        "iteration": opened.iteration if form.holds_iterations else None,
        "dtypes": _by_dtype(held),
        "bytes": sum(map(_nbytes, held)),
        "tensors": [[each.file, each.name, each.dtype, list(each.shape)] for each in held],
        **opened.summary,
    }
    if opened.config is not None and says_quantised(opened.config):
        try:
            # What it is of is told by what it stands for, in whatever type.
            options = replace(options, dtype="bfloat16")
            opened = opened_as_any(form, options, hand_out)
        except InputError as error:
            return report | {"problems": error.problems}
    return report | _of_model(options, form, opened, held, chosen, library)


def _of_record(directory: Path) -> dict[str, Any]:
    """What the record in a directory says of it, and whether the files that it names have the sizes that it says."""
    try:
        record = read_provenance(directory)
        check_inside(directory, record.files)
    except InputError as error:
        return {"record": None, "notes": [], "problems": error.problems}
    if record == Provenance() or record.newer is not None:
        return {"record": None, "notes": list(newer_note(record, directory)), "problems": []}
    said = {key: each for key, each in record.to_json().items() if key not in ("record", "files")}
    counts = {"files": len(record.files), "bytes": sum(each.nbytes for each in record.files.values())}
    return {"record": said | counts, "notes": [], "problems": list(wrong_sizes(directory, record.files))}


def _of_model(
    options: Options,
    form: Format[Options],
    opened: Opened,
    held: Sequence[Held],
    chosen: Chosen | None,
    library: Library,
) -> dict[str, Any]:
    """The part of the description that depends on the model: definition, layout, parameters, problems of binding."""
    try:
        if opened.config is None and options.reference is None and read_provenance(opened.directory).reference is None:
            note = "not compared with a model: nothing says which it was trained from; give reference=DIR"
            return {"notes": [note], "resembles": _resembling(held, library)}
        facts = facts_of(options, form, opened, chosen, library, needed=False)
    except InputError as error:
        return {"problems": error.problems, "resembles": _resembling(held, library)}
    config = opened.config if facts.reference is None else facts.reference.config
    found: dict[str, Any] = {
        "model": facts.model,
        "model_type": (config or {}).get("model_type"),
        "reference": None if facts.reference is None else facts.reference.directory,
    }
    try:
        model = facts.bound_model()
        if facts.model is None:
            what = f"not compared with a model: {_nameless(opened, found['model_type'])}; name one with +model=NAME"
            found |= {"notes": [what], "resembles": _resembling(held, library)}
            by_names = not opened.adapters and (opened.config is not None or opened.names_suffice)
            return found | (_of_names(facts.bound(options, model), what) if by_names else _of_held(held))
        return found | _of_source(facts.bound(options, model), model, options)
    except InputError as error:
        return found | {"problems": error.problems}


def _nameless(opened: Opened, model_type: object) -> str:
    """Why no model definition was chosen for a source."""
    if opened.adapters:
        return "adapters do not say of which model they are"
    if model_type is None:
        return "its configuration has no model_type"
    return f"no definition is for model_type {model_type!r}"


def _of_source(source: Source, model: Model, options: Options) -> dict[str, Any]:
    """What binding a source to its model tells.

    Raises:
        InputError: the source is not as its model is.
    """
    binding = source.parameters()
    reasons = Counter(each.reason for each in binding.unconverted)
    left_out = [f"{counted(count, 'tensor')} not converted: {reason}" for reason, count in reasons.items()]
    notes = [*source.notes, *left_out]
    try:
        parameters = _parameters(source, model, options)
    except InputError as error:
        parameters = None
        notes += [f"not as it was published: {problem}" for problem in error.problems]
    return {**source.summary(), "parameters": parameters, "notes": notes}


def _of_names(source: Source, note: str) -> dict[str, Any]:
    """What a source tells whose tensors have published names, of a model that no definition is for."""
    parameters = sum(each.tensor.elements for each in source.published().tensors)
    return {**source.summary(), "parameters": parameters, "notes": [note, *source.notes]}


def _of_held(held: Iterable[Held]) -> dict[str, Any]:
    """What the files of any source tell."""
    return {"parameters": sum(prod(each.shape) for each in held)}


def _parameters(source: Source, model: Model, options: Options) -> int:
    """The number of parameters under published names, without rows beyond the vocabulary of the reference.

    A head that is tied to the embedding is no other parameter.
    """
    definition = model.defined
    fitted = fit_vocabulary(source.published(), options, model).published.tensors
    published = {definition.spelled(each.name): each.tensor.elements for each in fitted}
    head = definition.tied_sources(published)[0] if definition.is_tied(model.sizes) else None
    return sum(elements for name, elements in published.items() if name != head)


def _by_dtype(held: Iterable[Held]) -> dict[str, dict[str, int]]:
    """Tensors, elements and bytes of each element type, as stored."""
    found: dict[str, dict[str, int]] = {}
    for each in held:
        counts = found.setdefault(each.dtype, {"tensors": 0, "elements": 0, "bytes": 0})
        counts["tensors"] += 1
        counts["elements"] += prod(each.shape)
        counts["bytes"] += _nbytes(each)
    return found


def _nbytes(held: Held) -> int:
    return prod(held.shape) * ITEM_SIZE.get(held.dtype, 0)


def _resembling(held: Iterable[Held], library: Library) -> list[str]:
    """The names of the model definitions that know most tensor names, under any prefix."""
    names = {_DIGITS.sub("0", each.name.rpartition("/")[2]) for each in held}
    likeness: dict[str, float] = {}
    for name in library.names():
        try:
            definition = parse_definition(name, library.content(name))
        except InputError:
            continue
        known = {rule.target for rule in definition.rules}
        known |= {source.name for rule in definition.rules for source in rule.sources}
        patterns = "|".join(re.sub(r"\\{\w+\\}", "0", re.escape(each)) for each in known)
        pattern = re.compile(rf"(?:.*\.)?(?:{patterns})")
        likeness[name] = sum(pattern.fullmatch(definition.spelled(each)) is not None for each in names) / max(
            len(names), 1
        )
    most = max(likeness.values(), default=0.0)
    return [name for name, each in likeness.items() if each == most >= _LEAST_LIKENESS]
