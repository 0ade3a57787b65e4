"""One job from options to result, on all its processes.

Owns the order of phases and the facts shared between them; other modules own the phases. The same code runs on one
process and on many. Prints nothing: it reports to an observer.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from distconv.actions import without_plan
from distconv.commit.modes import Modes
from distconv.commit.recovery import check_settled, leftovers
from distconv.commit.staging import Staging
from distconv.commit.target import Target, check_present, check_space, check_target
from distconv.done import is_done
from distconv.errors import InputError
from distconv.foreseen import foreseen
from distconv.formats.provenance import PROVENANCE_NAME, provenance_bytes
from distconv.formats.readers import Reader
from distconv.formats.records import OutputFile, Written
from distconv.formats.registry import Options, format_named, tasks
from distconv.models.library import Library
from distconv.observer import Observer, Outcome
from distconv.options import ERROR
from distconv.planning.assign import assign
from distconv.planning.choice import Chosen
from distconv.planning.facts import Facts
from distconv.planning.fingerprint import described
from distconv.planning.look import look
from distconv.planning.plan import Planned, plan_job, shares_of
from distconv.planning.record import record_of
from distconv.planning.report_file import ReportFiles
from distconv.planning.summary import plan_report
from distconv.proving import compare_files_recorded
from distconv.runtime.agreement import on_all, on_first, on_first_with_hand_out
from distconv.runtime.collection import uncollected
from distconv.runtime.hand_out import HandOut
from distconv.runtime.launch import cores
from distconv.runtime.processes import Processes
from distconv.transfer.overflow import told_overflow
from distconv.transfer.phases import Phases
from distconv.transfer.recorded import compare_record
from distconv.transfer.sinks import Counters
from distconv.transfer.surroundings import compare_beside, look_around, wrong_tracker
from distconv.transfer.verify import Compared, compare_files, compare_replicas, together
from distconv.writing import Writing, left_of

_LOG = logging.getLogger("distconv")


def run_job(
    options: Options,
    chosen: Chosen | None,
    library: Library,
    processes: Processes,
    observer: Observer,
    *,
    skip_done: bool = False,
) -> Outcome:
    """Run the action of the options, whatever it is but `models`; the same outcome on every process.

    With `skip_done`, a conversion whose result is there already, by its record, is skipped.

    Raises:
        DistconvError: the failure of any process, as the same error on every process.
    """
    processes.be_patient(options.patience)
    if (done := without_plan(options, chosen, library, processes, observer)) is not None:
        return done
    start, lanes = time.monotonic(), options.io.lanes(cores(os.environ))
    found: Facts | None = None

    def found_facts(hand_out: HandOut) -> dict[str, Any]:
        nonlocal found
        ReportFiles(options.report, options.plan_html).check()
        found = look(options, chosen, library, hand_out)
        return found.to_json()

    # Of a large model, more than a third of the time would go to looking for garbage that there is not.
    with uncollected():
        told = on_first_with_hand_out(processes, found_facts, tasks(), lanes.threads, "reading the headers")
        facts = found or Facts.from_json(told)
        options = facts.settled(options)
        planned, _ = on_all(processes, lambda: plan_job(options, facts), lambda _: None, "planning")
    phases = Phases(processes, observer, options.io, lanes, lambda: facts.looked_at, time.monotonic() - start)
    with phases.means.sources:
        planned = _with_trained_rows(options, facts, planned, processes, phases)
        _LOG.info("planned %d files from %s", len(planned.plan.files), options.source)
        job = _Job(options, facts, planned, processes, observer, phases)
        if skip_done and options.action != "verify" and job.is_done():
            return job.skipped()
        return {"plan": job.plan, "verify": job.verify, "convert": job.convert}[options.action]()


def _with_trained_rows(
    options: Options, facts: Facts, planned: Planned, processes: Processes, phases: Phases
) -> Planned:
    """The plan itself, if what it takes for padding of the vocabulary is that; else the one that keeps these rows."""
    if not planned.padding:
        return planned
    share = shares_of(planned.padding, processes.size)[processes.rank]
    # Before there is a plan to tell of, nobody is told of progress.
    silent = replace(phases.means, counters=Counters(lambda _: None, processes.progress))
    doing = "comparing padding of the vocabulary"
    _, found = on_all(processes, lambda: compare_replicas(share, silent), lambda found: found, doing)
    phases.means.counters.add(read=silent.counters.read)
    if not any(found):
        return planned
    again = replace(facts, trained_rows=True)
    kept, _ = on_all(processes, lambda: plan_job(options, again), lambda _: None, "planning")
    return replace(kept, padding=planned.padding)


class _Job:
    """A planned job: its target, its report, and this process's share of the files, with counters."""

    def __init__(
        self, options: Options, facts: Facts, planned: Planned, processes: Processes, observer: Observer, phases: Phases
    ) -> None:
        self._options, self._facts, self._planned = options, facts, planned
        self._processes, self._observer = processes, observer
        form = format_named(options.target_format)
        iteration = facts.iteration if form.holds_iterations else None
        self._target = Target(
            directory=options.target, iteration=iteration, marks=form.marks, readers_names=form.readers_names
        )
        self._report_files = ReportFiles(options.report, options.plan_html)
        self._report = plan_report(options, planned, facts, self._target.result)
        self._files: Sequence[OutputFile] = assign(planned.plan.files, processes.size)[processes.rank]
        self._phases = phases
        self._remarks: list[str] = []

    def is_done(self) -> bool:
        """Whether the target holds what this job would write."""
        made = self._options, self._facts, self._planned
        return bool(on_first(self._processes, lambda: is_done(*made, self._target, self._observer.note)))

    def skipped(self) -> Outcome:
        """The outcome of a job that is done already: its plan."""
        return Outcome(report=self._report, skipped=f"done already, as {self._target.result / PROVENANCE_NAME} says")

    def plan(self) -> Outcome:
        """The outcome of `action=plan`: the report with reads and memory of the planned processes."""

        def shares() -> dict[str, Any]:
            self._check_inputs()
            return self._shares()

        self._report |= on_first(self._processes, shares)
        return self._done()

    def convert(self) -> Outcome:
        """Write the result and give it its name; the outcome with measurements."""
        options, plan, observer = self._options, self._planned.plan, self._observer
        modes = Modes.of(file=options.file_mode, directory=options.dir_mode)
        reader = self._reader()
        with Staging(self._target, tell=observer.note, undisturbed=observer.undisturbed, modes=modes) as staging:

            def claim() -> None:
                self._check_inputs()
                check_target(self._target, self._facts.directories(options))
                staging.claim(
                    described(options, self._facts, plan, self._target.place.name), overwrite=options.overwrite
                )
                check_space(self._target, sum(file.nbytes for file in left_of(plan, staging.finished)))
                if options.plan_html is not None:
                    self._report_files.foresee(self._shares()["processes"])

            on_first(self._processes, claim)
            self._begin()
            writing = Writing(
                options=options, planned=self._planned, processes=self._processes, phases=self._phases, reader=reader
            )
            self._report["processes"] = writing.run(staging, self._target, self._provenance, self._tell_overflow)
            self._report["continued"] = writing.continued
            return self._done()

    def verify(self) -> Outcome:
        """Compare an existing result with its source; the outcome with differences and measurements."""

        def check() -> None:
            self._check_inputs()
            check_settled(self._target)
            check_present(self._target)

        on_first(self._processes, check)
        self._begin()
        compared, self._report["processes"] = self._compare()
        left = on_first(self._processes, lambda: [str(each) for each in leftovers(self._target.directory)])
        compared.notes.extend(left)
        return self._done(compared)

    def _shares(self) -> dict[str, Any]:
        """The part of the report about planned processes."""
        return foreseen(self._options, self._planned, self._processes.size, self._phases.means.buffers.lanes)

    def _check_inputs(self) -> None:
        """Whether what the result needs beside tensors is there, and the files of the report have their own places."""
        self._planned.files.check_inputs()
        read = self._facts.directories(self._options)
        self._report_files.check_place({**read, "target": self._target.result}, self._target.tracker)

    def _begin(self) -> None:
        """Tell the plan, and refuse a source whose copies of a tensor differ."""
        on_all(self._processes, lambda: self._observer.planned(self._report), lambda _: None, "telling the plan")
        differences = self._compare_replicas()
        if differences:
            raise InputError(differences)

    def _done(self, compared: Compared | None = None) -> Outcome:
        """The outcome, written to the file that `report` names unless there are differences."""
        found = compared or Compared()
        if not found.differences:
            on_first(self._processes, lambda: self._report_files.write(self._report))
        _LOG.info("%s of %s is done", self._options.action, self._target.result)
        return Outcome(report=self._report, differences=found.differences, notes=[*self._remarks, *found.notes])

    def _compare_replicas(self) -> list[str]:
        """The differences among tensors that the source stores several times."""
        if not (replicas := self._planned.replicas):
            return []
        share = shares_of(replicas, self._processes.size)[self._processes.rank]
        values, _ = self._phases.run(
            "comparing copies in the source",
            self._files,
            sum(each.nbytes for each in share),
            sum(each.nbytes for each in replicas),
            lambda: compare_replicas(share, self._phases.means),
            counted_as="comparing",
        )
        return [line for differences in values for line in differences]

    def _reader(self) -> Reader | None:
        """The reader through which the result is to be checked, if it is."""
        if not self._options.verify:
            return None
        reader, _ = on_all(self._processes, self._planned.files.reader, lambda _: None, "importing the reader")
        return reader

    def _tell_overflow(self) -> None:
        """Report numbers that a cast has made infinite, or refuse them."""
        allowed = self._options.dtype_overflow != ERROR
        self._report["casts"]["overflowed"], notes = told_overflow(self._phases.overflowed, allowed=allowed)
        self._report["notes"] += notes
        self._remarks += notes

    def _provenance(self, files: Mapping[str, Written]) -> Mapping[str, bytes]:
        """The record of the result by its path, unless it is left out; `files` as in `record_of`."""
        if not self._options.provenance:
            return {}
        return {PROVENANCE_NAME: provenance_bytes(record_of(self._options, self._facts, self._planned, files))}

    def _compare(self) -> tuple[Compared, list[Any]]:
        """The differences between result and plan, and the measurements of all processes."""
        plan, form, result = self._planned.plan, self._planned.files, self._target.result
        means, target = self._phases.means, self._target
        values, measured = self._phases.run(
            "comparing",
            self._files,
            sum(file.nbytes for file in self._files),
            sum(file.nbytes for file in plan.files),
            lambda: asdict(compare_files(plan, self._files, result, form, means)),
        )
        self._tell_overflow()

        def around() -> dict[str, Any]:
            beside = form.beside()
            names = [*(each.path for each in plan.files), *beside]
            tracked = Compared(differences=wrong_tracker(target))
            found = [tracked, compare_beside(form, result, beside, means.sources)]
            recorded: Mapping[str, Written] = {}
            if self._options.provenance:
                expected = record_of(self._options, self._facts, self._planned, dict.fromkeys(names, Written(0, None)))
                by_record, recorded = compare_record(result, expected)
                found.append(by_record)
                names.append(PROVENANCE_NAME)
            found.append(look_around(names, target))
            return {"found": [asdict(each) for each in found], "recorded": recorded}

        told = on_first(self._processes, around)
        compared = together([*told["found"], *values])
        self._phases.check_sources()
        if told["recorded"] and not compared.differences:
            # Of files that are right, so that it is the record that is not.
            recorded = {path: Written(*each) for path, each in told["recorded"].items()}
            wrong, measured = compare_files_recorded(result, recorded, self._processes, self._phases, "checksums")
            compared.differences.extend(wrong)
        return compared, measured
