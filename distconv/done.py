"""Whether a target holds already what a job would write, as its record says.

Owns what has to be equal for that. Compares no content, which `action=verify` does. Writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distconv.commit.recovery import check_settled
from distconv.commit.target import Target
from distconv.errors import InputError, named, shown
from distconv.formats.provenance import PROVENANCE_NAME, Provenance, newer_note, read_provenance
from distconv.formats.recorded_files import check_inside, wrong_sizes
from distconv.formats.registry import Options
from distconv.planning.facts import Facts
from distconv.planning.plan import Planned
from distconv.planning.record import record_of
from distconv.tensors.stored import SourceFile
from distconv.transfer.surroundings import wrong_tracker

# What a record says that another release, another form of records, or a definition in another place, says otherwise of
# the same result.
_OF_THE_RECORD = ("record", "distconv", "files", "definition")


def is_done(options: Options, facts: Facts, planned: Planned, target: Target, tell: Callable[[str], None]) -> bool:
    """Whether a target holds what this job would write; `tell` is called with what it is that it holds instead."""
    reasons = why_not_done(options, facts, planned, target)
    if reasons and target.result.is_dir() and os.listdir(target.result):
        for reason in reasons:
            tell(f"{target.result} is not what this job would write: {reason}")
    return not reasons


def why_not_done(options: Options, facts: Facts, planned: Planned, target: Target) -> list[str]:
    """Why a target does not hold what this job would write, in words; nothing if it does.

    It does if its record says the same source, model, layout and options, whichever release wrote it; if the files of
    the record are those of the plan, and have the recorded sizes; and if no file that the job reads is younger.
    """
    path = target.result / PROVENANCE_NAME
    if not options.provenance:
        return ["provenance=false: no record says what a result is"]
    if not path.exists():
        return [f"{path}: is missing"]
    try:
        check_settled(target)
        found = read_provenance(target.result)
        check_inside(target.result, found.files)
    except InputError as error:
        return error.problems
    if found.newer is not None:
        return list(newer_note(found, target.result))
    expected = record_of(options, facts, planned, {})
    beside = planned.files.beside()
    names = [*(each.path for each in planned.plan.files), *beside]
    copied = (each for each in beside.values() if isinstance(each, SourceFile))
    return [
        *_said_otherwise(path, found, expected),
        *(
            [f"{path}: does not name {named(more)}"]
            if (more := [each for each in names if each not in found.files])
            else []
        ),
        *wrong_sizes(target.result, found.files),
        *wrong_tracker(target),
        *_younger(path, [*facts.looked_at, *copied]),
    ]


def _said_otherwise(path: Path, found: Provenance, expected: Provenance) -> Iterator[str]:
    says: Mapping[str, Any] = found.to_json()
    # Tuples are lists in a file.
    wanted: Mapping[str, Any] = json.loads(json.dumps(expected.to_json()))
    for key in dict.fromkeys([*wanted, *says]):
        if key not in _OF_THE_RECORD and says.get(key) != wanted.get(key):
            yield f"{path}: says {key} {shown(says.get(key))}, expected {shown(wanted.get(key))}"


def _younger(record: Path, files: list[SourceFile]) -> list[str]:
    """That files which the job reads were changed after the record was written, in words."""
    written = record.stat().st_mtime_ns
    found = [
        each.path
        for each in files
        if (os.stat(each.path).st_mtime_ns if each.mtime_ns is None else each.mtime_ns) > written
    ]
    return [f"{record}: is older than files of the source: {named(found)}"] if found else []
