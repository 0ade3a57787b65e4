"""One job from configuration to result, on all its processes.

Owns the order of phases and what is shared between them; each phase itself is another module's. The same code runs on
one process and on many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distconv.agreement import on_all, on_first
from distconv.assignment import assign
from distconv.catalogue import Definitions
from distconv.commit import Staging, Target, check_absent, check_target, leftovers
from distconv.config import JobConfig
from distconv.errors import InputError, JobError, joined
from distconv.inspection import inspect
from distconv.interruption import undisturbed
from distconv.measurement import cpu_seconds, peak_resident_bytes
from distconv.plan import TRACKER_NAME, OutputFile, Plan
from distconv.planning import Facts, plan_job
from distconv.processes import Processes
from distconv.report import (
    Reporter,
    check_report,
    models_text,
    plan_report,
    plan_text,
    planned_processes,
    result_text,
    write_report,
)
from distconv.sinks import Counters
from distconv.verification import compare_files
from distconv.work import planned_reads
from distconv.writing import write_files


def run_job(
    config: JobConfig,
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

    def look() -> dict[str, Any]:
        if config.report is not None:
            check_report(config.report)
        return inspect(config, chosen, definitions).to_json()

    told = on_first(processes, look)
    facts = Facts.from_json(told)
    plan, _ = on_all(processes, lambda: plan_job(config, facts), lambda _: None)
    planned = time.monotonic() - start
    if config.action == "plan":
        on_first(processes, lambda: _show_plan(config, plan, facts.model, processes.size, reporter))
        return
    files = assign(plan.files, processes.size)[processes.rank]
    report = plan_report(config, plan, facts.model, ())
    target = Target(
        directory=config.target,
        iteration_directory=plan.iteration_directory,
        tracker=TRACKER_NAME,
        tracker_text=plan.iteration,
    )
    on_first(processes, lambda: _check_target(config, plan, target))
    reporter.say(plan_text(report, full=False) + "\n")
    share = _Share(processes, reporter, files, planned)
    if config.action == "verify":
        report["processes"] = _verify(config, plan, target, share)
    else:
        report["processes"] = _convert(config, plan, target, share)
    on_first(processes, lambda: _show_result(config, report, target, reporter))


class _Share:
    """What one process does of a transfer, with its counters and the wish to stop when another fails."""

    def __init__(self, processes: Processes, reporter: Reporter, files: Sequence[OutputFile], planned: float) -> None:
        self.processes = processes
        self.files = files
        self.counters = Counters(reporter.progress)
        self._reporter = reporter
        self._planned = planned

    def transfer(self, what: str, phase: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
        """Run the phase on every process, under a progress bar; everyone's values, and everyone's measurements."""
        nbytes = sum(file.nbytes for file in self.files)
        start, cpu = time.monotonic(), cpu_seconds()
        self._reporter.start_progress(what if self.processes.size == 1 else f"{what} (rank 0's share)", nbytes)

        def told(value: Any) -> dict[str, Any]:
            return {
                "value": value,
                "rank": self.processes.rank,
                "files": [file.path for file in self.files],
                "bytes_read": self.counters.read,
                "bytes_written": self.counters.written,
                "seconds": {"planning": self._planned, "transfer": time.monotonic() - start},
                "cpu_seconds": {"transfer": cpu_seconds() - cpu},
                "peak_bytes": peak_resident_bytes(),
            }

        try:
            _, outcomes = on_all(self.processes, phase, told)
            return [each.pop("value") for each in outcomes], outcomes
        finally:
            self._reporter.end_progress()


def _check_target(config: JobConfig, plan: Plan, target: Target) -> None:
    """Whether the result can be written or, to verify it, is there."""
    if config.action == "verify":
        tracker = target.directory / target.tracker
        if not target.result.is_dir():
            raise InputError(f"target={target.directory}: holds no {target.iteration_directory} to verify")
        found = tracker.read_text() if tracker.is_file() else None
        if found != target.tracker_text:
            raise InputError(f"{tracker}: expected {target.tracker_text!r}, found {found!r}")
        return
    sources = {"source": config.source}
    if config.text_source is not None:
        sources["text_source"] = config.text_source
    check_target(target, sources, overwrite=config.overwrite, needed=plan.nbytes)


def _convert(config: JobConfig, plan: Plan, target: Target, share: _Share) -> list[Any]:
    processes = share.processes
    staging: Staging | None = None

    def prepare() -> str:
        nonlocal staging
        staging = Staging(target)
        return str(staging.path)

    try:
        directory = Path(on_first(processes, prepare))
        from distconv.pt_file import lay_out  # noqa: PLC0415 - torch takes a second to import; planning does without it

        values, measured = share.transfer(
            "writing",
            lambda: write_files(plan, share.files, directory, config.io, share.counters, processes.alarmed, lay_out),
        )

        def commit() -> None:
            assert staging is not None
            if not config.overwrite:
                check_absent(target)
            sizes = {path: size for value in values for path, size in value.items()}
            staging.commit(sizes, durable=config.io.fsync)

        on_first(processes, commit)
    except BaseException:
        if staging is not None:
            with undisturbed():
                staging.discard()
        raise
    return measured


def _verify(config: JobConfig, plan: Plan, target: Target, share: _Share) -> list[Any]:
    values, measured = share.transfer(
        "comparing",
        lambda: compare_files(plan, share.files, target.result, config.io, share.counters, share.processes.alarmed),
    )
    expected = {file.path for file in plan.files}

    def extra() -> list[str]:
        found = {path.relative_to(target.result).as_posix() for path in target.result.rglob("*.pt")}
        return [f"{target.result / path}: is not expected" for path in sorted(found - expected)]

    differences = on_first(share.processes, extra) + [line for value in values for line in value]
    if differences:
        raise JobError(joined(differences))
    return measured


def _show_plan(config: JobConfig, plan: Plan, model: str, running: int, reporter: Reporter) -> None:
    count = config.processes or running
    reads = planned_reads(plan, assign(plan.files, count), config.io.buffer_bytes)
    report = plan_report(config, plan, model, planned_processes(plan, count, config, reads))
    if config.report is not None:
        write_report(config.report, report)
    reporter.say(plan_text(report, full=True))


def _show_result(config: JobConfig, report: Mapping[str, Any], target: Target, reporter: Reporter) -> None:
    if config.report is not None:
        write_report(config.report, report)
    reporter.say(result_text(report))
    for path in leftovers(target):
        reporter.say(f"note: {path} is left of a job that was killed, unless one is running; remove it")
