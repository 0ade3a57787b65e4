"""One job from configuration to result, on all its processes.

Owns the order of phases and what is shared between them; each phase itself is another module's. The same code runs on
one process and on many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distconv.cli.show import (
    Reporter,
    check_report,
    models_text,
    plan_report,
    plan_text,
    planned_processes,
    result_text,
    write_report,
)
from distconv.errors import InputError, JobError, joined, raise_if
from distconv.formats.provenance import Record
from distconv.formats.records import OutputFile, Plan
from distconv.formats.registry import Options
from distconv.formats.results import check_side, format_of, record_of, target_of
from distconv.models.library import Definitions
from distconv.planning.assign import assign
from distconv.planning.facts import Facts
from distconv.planning.inspect import TASKS, inspect
from distconv.planning.plan import Planned, plan_job
from distconv.runtime.agreement import on_all, on_first, on_first_with_help
from distconv.runtime.hand_out import HandOut
from distconv.runtime.interruption import undisturbed
from distconv.runtime.measurement import cpu_seconds, peak_resident_bytes
from distconv.runtime.processes import Processes
from distconv.transfer.batches import planned_reads
from distconv.transfer.commit import Staging, Target, check_absent, check_target, leftovers
from distconv.transfer.sinks import Counters
from distconv.transfer.verify import compare_copies, compare_files
from distconv.transfer.write import Written, finish, write_files


def run_job(
    config: Options,
    chosen: tuple[str, Mapping[str, Any]] | None,
    definitions: Definitions,
    processes: Processes,
    reporter: Reporter,
) -> None:
    """Do what the configuration says.

    Raises:
        DistconvError: the same on every process.
    """
    if config.action == "models":
        on_first(processes, lambda: reporter.say(models_text(definitions.heads())))
        return
    start = time.monotonic()

    def look(hand_out: HandOut) -> dict[str, Any]:
        if config.report is not None:
            check_report(config.report)
        return inspect(config, chosen, definitions, hand_out).to_json()

    told = on_first_with_help(processes, look, TASKS, config.io.threads)
    facts = Facts.from_json(told)
    planned, _ = on_all(processes, lambda: plan_job(config, facts), lambda _: None)
    planning = time.monotonic() - start
    plan = planned.plan
    target = target_of(plan, config.target, facts.iteration)
    report = plan_report(config, planned, facts, target)
    if config.action == "plan":
        on_first(processes, lambda: _show_plan(config, planned, report, processes.size, reporter))
        return
    on_first(processes, lambda: _check_target(config, facts, plan, target))
    reporter.say(plan_text(report, full=False) + "\n")
    share = _Share(processes, reporter, assign(plan.files, processes.size)[processes.rank], planning)
    _check_copies(planned, config, share)
    if config.action == "verify":
        report["processes"] = _verify(config, plan, target, share)
    else:
        report["processes"] = _convert(config, plan, target, share, record_of(config, facts))
    on_first(processes, lambda: _show_result(config, report, target, reporter))


class _Share:
    """What one process does of a transfer, with its counters and the wish to stop when another fails."""

    def __init__(self, processes: Processes, reporter: Reporter, files: Sequence[OutputFile], planning: float) -> None:
        self.processes = processes
        self.files = files
        self.counters = Counters(reporter.progress)
        self._reporter = reporter
        self._seconds = {"planning": planning}

    @property
    def nbytes(self) -> int:
        """Tensor data of its files in bytes."""
        return sum(file.nbytes for file in self.files)

    def transfer(
        self, what: str, nbytes: int, phase: Callable[[], Any], *, counted_as: str = "transfer"
    ) -> tuple[list[Any], list[Any]]:
        """Run the phase on every process, under a progress bar; everyone's values, and everyone's measurements.

        `nbytes` is what this process has to do, in bytes; `counted_as` the name of the phase in the measurements.
        """
        start, cpu = time.monotonic(), cpu_seconds()
        self._reporter.start_progress(what if self.processes.size == 1 else f"{what} (rank 0's share)", nbytes)

        def told(value: Any) -> dict[str, Any]:
            self._seconds[counted_as] = time.monotonic() - start
            return {
                "value": value,
                "rank": self.processes.rank,
                "files": [file.path for file in self.files],
                "bytes_read": self.counters.read,
                "bytes_written": self.counters.written,
                "seconds": self._seconds,
                "cpu_seconds": {"transfer": cpu_seconds() - cpu},
                "peak_bytes": peak_resident_bytes(),
            }

        try:
            _, outcomes = on_all(self.processes, phase, told)
            return [each.pop("value") for each in outcomes], outcomes
        finally:
            self._reporter.end_progress()


def _check_target(config: Options, facts: Facts, plan: Plan, target: Target) -> None:
    """Whether the result can be written or, to verify it, is there."""
    check_side(plan)
    if config.action == "verify":
        if not target.result.is_dir():
            raise InputError(f"target={target.directory}: holds no {target.result.name} to verify")
        if target.tracker is not None:
            found = target.tracker.read_text() if target.tracker.is_file() else None
            if found != target.iteration:
                raise InputError(f"{target.tracker}: expected {target.iteration!r}, found {found!r}")
        return
    sources = {"source": config.source}
    if config.text_source is not None:
        sources["text_source"] = config.text_source
    if facts.reference is not None:
        sources["reference"] = Path(facts.reference.directory)
    check_target(target, sources, overwrite=config.overwrite, needed=sum(file.nbytes for file in plan.files))


def _check_copies(planned: Planned, config: Options, share: _Share) -> None:
    """Whether what the source holds several times is the same everywhere."""
    if not planned.copies:
        return
    copies = planned.shares_of_copies(share.processes.size)[share.processes.rank]
    alarmed = share.processes.alarmed
    values, _ = share.transfer(
        "comparing copies in the source",
        sum(each.nbytes for each in copies),
        lambda: compare_copies(copies, config.io, share.counters, alarmed),
        counted_as="comparing",
    )
    raise_if([line for value in values for line in value])


def _convert(config: Options, plan: Plan, target: Target, share: _Share, record: Record | None) -> list[Any]:
    processes = share.processes
    staging: Staging | None = None

    def prepare() -> str:
        nonlocal staging
        staging = Staging(target)
        return str(staging.path)

    try:
        directory = Path(on_first(processes, prepare))
        form = format_of(plan)

        def write() -> dict[str, Any]:
            return asdict(write_files(plan, share.files, directory, form, config.io, share.counters, processes.alarmed))

        values, measured = share.transfer("writing", share.nbytes, write)

        def commit() -> None:
            assert staging is not None
            if not config.overwrite:
                check_absent(target)
            written = Written(
                sizes={path: size for value in values for path, size in value["sizes"].items()},
                details={path: detail for value in values for path, detail in value["details"].items()},
            )
            finish(written, staging.path, form, record, durable=config.io.fsync)
            staging.commit(written.sizes, durable=config.io.fsync)

        on_first(processes, commit)
        if processes.rank == 0:
            # To finish a result can take more than to write files.
            measured[0]["peak_bytes"] = peak_resident_bytes()
    except BaseException:
        if staging is not None:
            with undisturbed():
                staging.discard()
        raise
    return measured


def _verify(config: Options, plan: Plan, target: Target, share: _Share) -> list[Any]:
    form = format_of(plan)

    def compare() -> list[str]:
        alarmed = share.processes.alarmed
        return compare_files(plan, share.files, target.result, form, config.io, share.counters, alarmed)

    values, measured = share.transfer("comparing", share.nbytes, compare)
    expected = {file.path for file in plan.files}

    def extra() -> list[str]:
        found = {path.relative_to(target.result).as_posix() for path in target.result.rglob(form.pattern)}
        unexpected = [f"{target.result / path}: is not expected" for path in sorted(found - expected)]
        return unexpected + form.check(target.result)

    differences = on_first(share.processes, extra) + [line for value in values for line in value]
    if differences:
        raise JobError(joined(differences))
    return measured


def _show_plan(config: Options, planned: Planned, report: dict[str, Any], running: int, reporter: Reporter) -> None:
    count = config.processes or running
    plan = planned.plan
    check_side(plan)
    reads = planned_reads(plan, assign(plan.files, count), config.io.buffer_bytes)
    # Copies are compared with what they are copies of.
    copied = (2 * sum(each.nbytes for each in copies) for copies in planned.shares_of_copies(count))
    report["processes"] = planned_processes(plan, count, config, map(sum, zip(reads, copied, strict=True)))
    if config.report is not None:
        write_report(config.report, report)
    reporter.say(plan_text(report, full=True))


def _show_result(config: Options, report: Mapping[str, Any], target: Target, reporter: Reporter) -> None:
    if config.report is not None:
        write_report(config.report, report)
    reporter.say(result_text(report))
    for path in leftovers(target):
        reporter.say(f"note: {path} is left of a job that was killed, unless one is running; remove it")
