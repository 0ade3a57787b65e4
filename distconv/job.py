"""One job from options to result, on all its processes.

Owns the order of phases and the facts shared between them; other modules own the phases. The same code runs on one
process and on many. Prints nothing: it reports to an observer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distconv.errors import InputError
from distconv.formats.provenance import PROVENANCE_NAME, provenance_bytes, provenance_of
from distconv.formats.records import OutputFile
from distconv.formats.registry import Options, format_named, tasks
from distconv.models.library import Library
from distconv.observer import Observer, Outcome
from distconv.planning.assign import assign
from distconv.planning.describe import describe
from distconv.planning.facts import Facts
from distconv.planning.look import Chosen, look
from distconv.planning.plan import Planned, plan_job
from distconv.planning.summary import check_report, plan_report, planned_processes, write_report
from distconv.runtime.agreement import on_all, on_first, on_first_with_hand_out
from distconv.runtime.hand_out import HandOut
from distconv.runtime.measurement import cpu_seconds, peak_resident_bytes
from distconv.runtime.processes import Processes
from distconv.transfer.batches import planned_reads
from distconv.transfer.commit import Staging, Target, check_absent, check_present, check_target, leftovers
from distconv.transfer.sinks import Counters
from distconv.transfer.surroundings import compare_surroundings
from distconv.transfer.verify import Compared, compare_files, compare_replicas, together
from distconv.transfer.write import write_beside, write_files

_LOG = logging.getLogger("distconv")


def run_job(
    options: Options, chosen: Chosen | None, library: Library, processes: Processes, observer: Observer
) -> Outcome:
    """Run the action of the options: convert, plan, verify or inspect; the same outcome on every process.

    Raises:
        DistconvError: the failure of any process, as the same error on every process.
    """
    if options.action == "inspect":
        return _inspected(options, chosen, library, processes)
    start = time.monotonic()
    found: Facts | None = None

    def found_facts(hand_out: HandOut) -> dict[str, Any]:
        nonlocal found
        if options.report is not None:
            check_report(options.report)
        found = look(options, chosen, library, hand_out)
        return found.to_json()

    told = on_first_with_hand_out(processes, found_facts, tasks(), options.io.threads)
    facts = found or Facts.from_json(told)
    planned, _ = on_all(processes, lambda: plan_job(options, facts), lambda _: None)
    _LOG.info("planned %d files from %s", len(planned.plan.files), options.source)
    job = _Job(options, facts, planned, processes, observer, planning=time.monotonic() - start)
    return job.plan() if options.action == "plan" else job.transfer()


def _inspected(options: Options, chosen: Chosen | None, library: Library, processes: Processes) -> Outcome:
    """The outcome of `action=inspect`: the description of a directory."""

    def description(hand_out: HandOut) -> dict[str, Any]:
        report = describe(options, chosen, library, hand_out)
        if options.report is not None:
            check_report(options.report)
            write_report(options.report, report)
        return report

    return Outcome(report=on_first_with_hand_out(processes, description, tasks(), options.io.threads))


class _Job:
    """A planned job: its target, its report, and this process's share of the files, with counters."""

    def __init__(
        self,
        options: Options,
        facts: Facts,
        planned: Planned,
        processes: Processes,
        observer: Observer,
        *,
        planning: float,
    ) -> None:
        self._options, self._facts, self._planned = options, facts, planned
        self._processes, self._observer = processes, observer
        form = format_named(options.target_format)
        iteration = facts.iteration if form.holds_iterations else None
        self._target = Target(directory=options.target, iteration=iteration, marks=form.marks)
        self._report = plan_report(options, planned, facts, self._target.result)
        self._files: Sequence[OutputFile] = assign(planned.plan.files, processes.size)[processes.rank]
        self._counters = Counters(observer.advance)
        self._seconds = {"planning": planning}
        self._remarks: list[str] = []

    def plan(self) -> Outcome:
        """The outcome of `action=plan`: the report with reads and memory of the planned processes."""
        options, planned = self._options, self._planned
        count = options.processes or self._processes.size

        def shares() -> list[dict[str, Any]]:
            planned.files.check_inputs()
            reads = planned_reads(planned.plan, assign(planned.plan.files, count), options.io.buffer_bytes)
            # Originals and duplicates of replicas are both read.
            compared = (2 * sum(each.nbytes for each in share) for share in planned.shares_of_replicas(count))
            return planned_processes(options, planned, count, map(sum, zip(reads, compared, strict=True)))

        self._report["processes"] = on_first(self._processes, shares)
        return self._reported(Outcome(report=self._report))

    def transfer(self) -> Outcome:
        """Convert or verify; the outcome with measurements."""
        on_first(self._processes, self._check_target)
        self._observer.planned(self._report)
        differences = self._compare_replicas()
        if differences:
            raise InputError(differences)
        compared = Compared()
        if self._options.action == "verify":
            compared, self._report["processes"] = self._verify()
        else:
            self._report["processes"] = self._convert()
        left = on_first(self._processes, lambda: [_leftover(path) for path in leftovers(self._target)])
        _LOG.info("%s of %s is done", self._options.action, self._target.result)
        notes = [*self._remarks, *compared.notes, *left]
        return self._reported(Outcome(report=self._report, differences=compared.differences, notes=notes))

    def _reported(self, outcome: Outcome) -> Outcome:
        """The outcome, written to the file that `report` names."""
        path = self._options.report
        if path is not None and not outcome.differences:
            on_first(self._processes, lambda: write_report(path, outcome.report))
        return outcome

    def _check_target(self) -> None:
        """Whether the result can be written or, to verify it, is there."""
        options, facts, target = self._options, self._facts, self._target
        self._planned.files.check_inputs()
        if options.action == "verify":
            check_present(target)
            return
        sources = {"source": options.source}
        if options.text_source is not None:
            sources["text_source"] = options.text_source
        if facts.reference is not None:
            sources["reference"] = Path(facts.reference.directory)
        needed = sum(file.nbytes for file in self._planned.plan.files)
        check_target(target, sources, overwrite=options.overwrite, needed=needed)

    def _compare_replicas(self) -> list[str]:
        """The differences among tensors that the source stores several times; those that may be become notes."""
        if not self._planned.replicas:
            return []
        share = self._planned.shares_of_replicas(self._processes.size)[self._processes.rank]
        io, alarmed = self._options.io, self._processes.alarmed
        values, _ = self._phase(
            "comparing copies in the source",
            sum(each.nbytes for each in share),
            lambda: compare_replicas(share, io, self._counters, alarmed),
            counted_as="comparing",
        )
        notes = dict.fromkeys(note for _, found in values for note in found)
        self._report["notes"] += [note for note in notes if note not in self._report["notes"]]
        self._remarks = list(notes)
        return [line for differences, _ in values for line in differences]

    def _convert(self) -> list[Any]:
        """Write and commit the files; the measurements of all processes."""
        processes, io, target = self._processes, self._options.io, self._target
        plan, form = self._planned.plan, self._planned.files
        staging: Staging | None = None

        def prepare() -> str:
            nonlocal staging
            staging = Staging(target)
            return str(staging.path)

        def commit() -> None:
            assert staging is not None
            if not self._options.overwrite:
                check_absent(target)
            sizes = {path: size for value in values for path, size in value.items()}
            sizes |= write_beside(staging.path, self._beside(), durable=io.fsync)
            staging.commit(sizes, durable=io.fsync)

        try:
            directory = Path(on_first(processes, prepare))
            values, measured = self._phase(
                "writing",
                sum(file.nbytes for file in self._files),
                lambda: write_files(plan, self._files, directory, form, io, self._counters, processes.alarmed),
            )
            on_first(processes, commit)
        except BaseException:
            if staging is not None:
                with self._observer.undisturbed():
                    staging.discard()
            raise
        if processes.rank == 0:
            # Finishing a result can need more memory than writing its files.
            measured[0]["peak_bytes"] = peak_resident_bytes()
        return measured

    def _beside(self) -> Mapping[str, bytes | Path]:
        """The files beside the tensors: those of the format, and the provenance of a result that is an iteration."""
        beside = self._planned.files.beside()
        if self._target.iteration is None:
            return beside
        facts, options = self._facts, self._options
        if facts.reference is not None:
            reference: Path | None = Path(facts.reference.directory)
        else:
            # A model made from two directories has neither as its reference.
            reference = None if options.text_source is not None else options.source
        return {**beside, PROVENANCE_NAME: provenance_bytes(provenance_of(facts.model, reference, facts.scaling))}

    def _verify(self) -> tuple[Compared, list[Any]]:
        """The differences between result and plan, and the measurements of all processes."""
        plan, form, result = self._planned.plan, self._planned.files, self._target.result
        io, alarmed = self._options.io, self._processes.alarmed
        values, measured = self._phase(
            "comparing",
            sum(file.nbytes for file in self._files),
            lambda: asdict(compare_files(plan, self._files, result, form, io, self._counters, alarmed)),
        )
        beside, target = self._beside, self._target
        around = on_first(self._processes, lambda: asdict(compare_surroundings(plan, form, beside(), target)))
        return together([around, *values]), measured

    def _phase(
        self, what: str, nbytes: int, phase: Callable[[], Any], *, counted_as: str = "transfer"
    ) -> tuple[list[Any], list[Any]]:
        """Run a phase on every process; the values and the measurements of all processes.

        `nbytes` is this process's share in bytes; `counted_as` the name of the phase in the measurements.
        """
        start, cpu = time.monotonic(), cpu_seconds()

        def begun() -> Any:
            self._observer.begin(what, nbytes)
            return phase()

        def told(value: Any) -> dict[str, Any]:
            self._seconds[counted_as] = time.monotonic() - start
            return {
                "value": value,
                "rank": self._processes.rank,
                "files": [file.path for file in self._files],
                "bytes_read": self._counters.read,
                "bytes_written": self._counters.written,
                "seconds": self._seconds,
                "cpu_seconds": {"transfer": cpu_seconds() - cpu},
                "peak_bytes": peak_resident_bytes(),
            }

        try:
            _, outcomes = on_all(self._processes, begun, told)
            return [each.pop("value") for each in outcomes], outcomes
        finally:
            self._observer.end()


def _leftover(path: Path) -> str:
    return f"{path} is left of a job that was killed, unless one is running; remove it"
