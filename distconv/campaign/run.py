"""Jobs one after the other on the same processes: those of several sources, or the one of a single source.

Owns the order, and that a job which fails does not keep the next one from running. All processes run all jobs, but for
small ones (`pool`): in a watch all of them, so that its table is true whenever it is interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from distconv.campaign.names import Checkpoint, checkpoints, has_own_reports
from distconv.campaign.outcomes import Ended, ended_with, exit_status_of, failed, failure_of, report_of
from distconv.campaign.pool import run_small
from distconv.campaign.sources import directories, nothing_problem
from distconv.campaign.trackers import complete
from distconv.errors import DistconvError, InputError, JobError, LostError
from distconv.formats.registry import Options
from distconv.job import run_job
from distconv.models.library import Library
from distconv.observer import Observer, Outcome
from distconv.planning.choice import Chosen
from distconv.planning.report_file import ReportFile
from distconv.runtime.agreement import on_first
from distconv.runtime.interruption import EndOfWatchError
from distconv.runtime.processes import Processes

# Actions on several sources that move bytes.
_DIVIDED = ("convert", "verify")
# Seconds between two looks at the trackers of a training; fewer where processes may not be silent for so long.
_PAUSE_SECONDS = 5.0
_SHORTEST_SILENCES = 4


def run(options: Options, chosen: Chosen | None, library: Library, processes: Processes, observer: Observer) -> Outcome:
    """Run the action of the options on its source, or on each of its sources; the same outcome on every process.

    Raises:
        DistconvError: the failure of any process, as the same error on every process.
        UnfinishedError: of several sources some failed.
        EndOfWatchError: the interruption of a watch.
    """
    if options.sources is None:
        return run_job(options, chosen, library, processes, observer)
    processes.be_patient(options.patience)
    campaign = _Campaign(options, chosen, library, processes, observer)
    return campaign.watch() if options.watch else campaign.once()


class _Campaign:
    """The jobs of several sources, and what became of them."""

    def __init__(
        self, options: Options, chosen: Chosen | None, library: Library, processes: Processes, observer: Observer
    ) -> None:
        self._options, self._chosen, self._library = options, chosen, library
        self._processes, self._observer = processes, observer
        self._report_file = ReportFile(None if has_own_reports(options) else options.report)
        self._ended: list[Ended] = []
        self._noted: set[str] = set()

    def once(self) -> Outcome:
        """Run the jobs of all sources."""
        jobs = self._found(self._sources)
        is_divided = self._options.action in _DIVIDED
        self._run(jobs, run_small(jobs, self._processes, self._observer, self._one) if is_divided else {})
        report = report_of(self._options, self._ended)
        self._observer.all_ended(report)
        if (failure := failure_of(self._options, self._ended)) is not None:
            raise failure
        differences = [f"{each.checkpoint.source}: {line}" for each in self._ended for line in each.differences]
        return Outcome(report=report, differences=differences)

    def watch(self) -> Outcome:
        """Run the jobs of sources as they come, until it is interrupted."""
        patience = self._options.patience
        pause = min(_PAUSE_SECONDS, patience / _SHORTEST_SILENCES) if patience else _PAUSE_SECONDS
        try:
            if self._processes.rank == 0:
                self._observer.note(f"watching {self._options.sources} until SIGTERM or Ctrl-C")
            self._run(self._found(self._new_ones), {})
            while True:
                time.sleep(pause)
                try:
                    found = self._found(self._new_ones)
                except InputError as error:
                    # By now something may have been written.
                    raise JobError(str(error)) from error
                self._run(found, {})
        except KeyboardInterrupt as interruption:
            # Without the others, who may have been interrupted elsewhere.
            for said in interruption.args:
                self._observer.note(str(said))
            self._observer.all_ended(report_of(self._options, self._ended))
            raise EndOfWatchError(exit_status_of(self._options, self._ended)) from interruption

    def _found(self, sources: Any) -> list[Checkpoint]:
        """The checkpoints of the sources that rank 0 finds, if their jobs go together."""
        before = [each.checkpoint for each in self._ended]

        def found() -> list[dict[str, Any]]:
            jobs = checkpoints(self._options, sources(), before)
            self._report_file.check()
            for job in jobs:
                self._report_file.check_place(job.places())
            return [job.to_json() for job in jobs]

        return [Checkpoint(**each) for each in on_first(self._processes, found, "looking for sources")]

    def _sources(self) -> list[str]:
        sources = self._options.sources
        assert sources is not None
        found = directories(sources)
        if not found:
            raise InputError(nothing_problem(sources))
        return found

    def _new_ones(self) -> list[str]:
        """The complete iterations whose jobs have not run yet."""
        sources = self._options.sources
        assert sources is not None
        found, never = complete(directories(sources))
        for text in never:
            if text not in self._noted:
                self._noted.add(text)
                self._observer.note(text)
        before = {each.checkpoint.source for each in self._ended}
        return [each for each in found if each not in before]

    def _run(self, jobs: Sequence[Checkpoint], ended: Mapping[int, Ended]) -> None:
        """Run these jobs but those that have `ended`, by position, and write the report of all so far."""
        for number, job in enumerate(jobs):
            self._ended.append(ended[number] if number in ended else self._told(number, len(jobs), job))
        if jobs:
            on_first(self._processes, lambda: self._report_file.write(report_of(self._options, self._ended)))

    def _told(self, number: int, count: int, job: Checkpoint) -> Ended:
        """Run one job on all processes, and tell of it."""
        self._observer.checkpoint(job.source, job.target, number + 1, count)
        ended = self._one(job, self._processes, self._observer)
        self._observer.ended(ended.done, ended.why)
        return ended

    def _one(self, job: Checkpoint, processes: Processes, observer: Observer) -> Ended:
        """Run one job.

        Raises:
            LostError: with a process that is lost no other job can be run.
        """
        try:
            options = job.options(self._options)
            outcome = run_job(options, self._chosen, self._library, processes, observer, skip_done=True)
        except LostError:
            raise
        except DistconvError as error:
            return failed(job, error)
        return ended_with(job, outcome)
