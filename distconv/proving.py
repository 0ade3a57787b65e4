"""Proving a result by its own record, without the source that it was made from, on all processes.

Owns the search for the result and its record, the order of the comparisons, and the outcome. Plans nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distconv.commit.recovery import check_settled, leftovers
from distconv.commit.target import Target
from distconv.errors import InputError
from distconv.formats.huggingface.directory import check_directory
from distconv.formats.iterations import iteration_directory, iteration_name, iteration_of, iterations_in
from distconv.formats.provenance import PROVENANCE_NAME, Provenance, newer_note, read_provenance
from distconv.formats.recorded_files import check_inside
from distconv.formats.records import Written
from distconv.formats.registry import FORMATS, Options, format_named
from distconv.observer import Observer, Outcome
from distconv.planning.assign import assign
from distconv.planning.choice import Chosen
from distconv.planning.report_file import ReportFile
from distconv.runtime.agreement import on_first
from distconv.runtime.launch import cores
from distconv.runtime.processes import Processes
from distconv.transfer.phases import Phases
from distconv.transfer.recorded import as_outputs, compare_recorded
from distconv.transfer.surroundings import look_around, wrong_tracker
from distconv.transfer.verify import Compared, together

_GIVE_SOURCE = "give source=DIR, what it was made from, to compare it with that"


def proved(options: Options, chosen: Chosen | None, processes: Processes, observer: Observer) -> Outcome:
    """The outcome of `action=verify` without a source: the differences between a result and its record.

    Raises:
        DistconvError: there is no result, or no record that names its files, or a damaged one; as the same error on
            every process.
    """
    start = time.monotonic()

    def found() -> dict[str, Any]:
        if chosen is not None:
            raise InputError(f"+model={chosen[0]}: goes with source=DIR; the record of a result says what it is")
        file = ReportFile(options.report)
        file.check()
        target, record = _found(options)
        file.check_place({"target": target.result}, target.tracker)
        around = look_around({*record.files, PROVENANCE_NAME}, target)
        if options.iteration is None:
            around.differences.extend(wrong_tracker(target))
        around.notes.extend(str(each) for each in leftovers(target.directory))
        return {"result": str(target.result), "record": record.to_json(), "around": asdict(around)}

    told = on_first(processes, found)
    result = Path(told["result"])
    record = Provenance.parse(told["record"], str(result / PROVENANCE_NAME))
    lanes = options.io.lanes(cores(os.environ))
    phases = Phases(processes, observer, options.io, lanes, lambda: (), time.monotonic() - start)
    with phases.means.sources:
        values, measured = compare_files_recorded(result, record.files, processes, phases)
    compared = together([told["around"], {"differences": values, "notes": []}])
    if unknown := sum(each.checksum is None for each in record.files.values()):
        of = "only the sizes" if unknown == len(record.files) else f"of {unknown} files only the sizes"
        compared.notes.append(f"{result / PROVENANCE_NAME}: {of} were compared: it has no checksums of them")
    report = _report(options, result, record, compared, measured)
    if not compared.differences:
        on_first(processes, lambda: ReportFile(options.report).write(report))
    return Outcome(report=report, differences=compared.differences, notes=compared.notes)


def compare_files_recorded(
    directory: Path, files: Mapping[str, Written], processes: Processes, phases: Phases, counted_as: str = "transfer"
) -> tuple[list[str], list[Any]]:
    """Compare the recorded files of a result on all processes; the differences, and the measurements.

    Raises:
        DistconvError: the failure of any process, as the same error on every process.
    """
    share = assign(as_outputs(files), processes.size)[processes.rank]
    values, measured = phases.run(
        "comparing checksums",
        share,
        sum(each.nbytes for each in share),
        sum(each.nbytes for each in files.values()),
        lambda: compare_recorded(directory, files, share, phases.means),
        counted_as=counted_as,
    )
    return [line for lines in values for line in lines], measured


def _found(options: Options) -> tuple[Target, Provenance]:
    """The result in the directory `target`, this itself or an iteration in it, and its record.

    Raises:
        InputError: there is none; or as `_record`.
    """
    directory, iteration = options.target, options.iteration
    check_directory(directory, "target")
    if (directory / PROVENANCE_NAME).exists() or not iterations_in(directory):
        if iteration is not None and iteration_name(iteration) != directory.resolve().name:
            raise InputError(
                f"iteration={iteration}: target={directory} is a result itself, not one of several; leave iteration out"
            )
        target = Target(directory=directory, iteration=None)
    else:
        target = Target(
            directory=directory, iteration=iteration_of(iteration_directory(directory, iteration, "target"))
        )
    check_settled(target)
    record = _record(target.result)
    return replace(target, readers_names=format_named(record.format or "").readers_names), record


def _record(result: Path) -> Provenance:
    """The record of a result, which names its files.

    Raises:
        InputError: there is none that does, or it is damaged, or leads out of the result.
    """
    path = result / PROVENANCE_NAME
    if not path.exists():
        raise InputError(f"target={result}: has no {PROVENANCE_NAME} to be compared with; {_GIVE_SOURCE}")
    record = read_provenance(result)
    if not record.files:
        why = "; ".join(newer_note(record, result)) or f"{path}: names no files"
        raise InputError(f"{why}; {_GIVE_SOURCE}")
    if record.format not in [each.name for each in FORMATS]:
        raise InputError(f"{path}: format: expected one of {', '.join(each.name for each in FORMATS)}; {_GIVE_SOURCE}")
    check_inside(result, record.files)
    return record


def _report(
    options: Options, result: Path, record: Provenance, compared: Compared, measured: list[Any]
) -> dict[str, Any]:
    within = result.relative_to(options.target)
    return {
        "action": options.action,
        "source": None,
        "target": str(options.target),
        "target_format": record.format,
        "iteration": within.name or None,
        "continued": None,
        "model": record.model,
        "files": [{"path": (within / path).as_posix(), "bytes": each.nbytes} for path, each in record.files.items()],
        "notes": compared.notes,
        "processes": measured,
    }
