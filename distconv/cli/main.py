"""The program: outcomes of a command line as text and an exit status.

Owns the connection to the other processes, and the exit status: 0 done, 1 failed, 2 wrong input. Only rank 0 prints.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

from distconv.campaign.run import run
from distconv.cli.completion import completion
from distconv.cli.config import help_text
from distconv.cli.flags import Words, sorted_words
from distconv.cli.mistakes import check_words
from distconv.cli.models_text import models_text
from distconv.cli.phases_text import phases_text
from distconv.cli.plain import Job, composed
from distconv.cli.show import Reporter, outcome_text
from distconv.errors import DistconvError, JobError, LauncherError, LostError, joined, missing_package, system_problem
from distconv.formats.registry import Options
from distconv.models.library import Library
from distconv.planning.choice import Chosen
from distconv.runtime.clerk import FAREWELL_SECONDS
from distconv.runtime.interruption import EndOfWatchError, end_as_signalled, end_politely, interruptions
from distconv.runtime.launch import Launch, connect, launch
from distconv.runtime.processes import PATIENCE, Processes
from distconv.version import VERSION

_INTERRUPTED = 130


def main() -> int:
    """Run the command line; the exit status."""
    try:
        start = launch(os.environ)
    except LauncherError as error:
        # Every process prints it: none knows of the others.
        Reporter(rank=0).fail(str(error))
        return error.exit_status
    connection = _Connection(start)
    end_politely()
    try:
        return _main(start, connection)
    except KeyboardInterrupt:
        # Once more, of a process that is ending because of the first one.
        return _INTERRUPTED
    except LostError as error:
        # A launcher interrupts this process when another one has told.
        with contextlib.suppress(KeyboardInterrupt):
            if connection.has_to_tell():
                Reporter(rank=0).fail(str(error))
            connection.desert(error)
        # Not by returning: a thread that hangs in a system call would be waited for.
        os._exit(error.exit_status)


def _main(start: Launch, connection: _Connection) -> int:
    """Run the command line; the exit status.

    Raises:
        LostError: another process is lost, or the connection to all of them.
    """
    reporter = Reporter(start.rank)
    try:
        with interruptions():
            words = sorted_words(sys.argv[1:])
            reporter.loudness = words.loudness
            _run_words(
                words,
                lambda options, chosen, library: _run(options, chosen, library, connection, reporter),
                reporter,
                quiet=start.rank != 0,
            )
    except LostError:
        raise
    except DistconvError as error:
        reporter.fail(str(error))
        connection.leave_after(error)
        return error.exit_status
    except SystemExit as leave:
        status = int(leave.code or 0)
        connection.leave_after(leave if status else None)
        return status
    except KeyboardInterrupt as interruption:
        # The others may have ended a job in which this process did not move.
        expected = isinstance(interruption, EndOfWatchError)
        if start.rank == 0 and not expected and connection.has_to_tell():
            reporter.fail("; ".join(["interrupted", *map(str, interruption.args)]))
        with contextlib.suppress(LostError):
            connection.leave(FAREWELL_SECONDS)
        if start.size > 1 and not connection.is_made():
            end_as_signalled()
        return interruption.exit_status if isinstance(interruption, EndOfWatchError) else _INTERRUPTED
    except OSError as error:
        Reporter(rank=0).fail(f"rank {start.rank}: {system_problem(error.filename or 'failed', error)}")
        connection.abort()
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort: say who failed, and let no process wait for this one
        Reporter(rank=0).complain("".join(traceback.format_exception(error)).rstrip("\n"))
        Reporter(rank=0).fail(f"rank {start.rank}: unexpected failure: {type(error).__name__}: {error}")
        connection.abort()
        return 1
    connection.leave()
    return 0


def _run_words(words: Words, job: Job, reporter: Reporter, *, quiet: bool) -> None:
    """Do what the words of the command line ask for; plain ones need no Hydra, whose output is discarded if `quiet`.

    Raises:
        DistconvError: a command line that is wrong; the job failed.
        SystemExit: a command of Hydra itself is done.
    """
    if words.help:
        reporter.answer(help_text())
        return
    if words.version:
        reporter.answer(f"distconv {VERSION}")
        return
    if words.completes is not None:
        reporter.answer(completion(words.completes))
        return
    check_words(words)
    found = None if words.of_hydra else composed(words.others)
    if found is not None:
        job(*found)
        return
    try:
        # Here, since it takes longer to import and to compose than many a conversion.
        from distconv.cli.command_line import run_command_line  # noqa: PLC0415
    except ModuleNotFoundError as error:
        problem = missing_package(error)
        raise (error if problem is None else JobError(f"{problem}: Hydra reads what is not plain")) from None
    sys.argv[1:] = [*words.of_hydra, *words.others]
    run_command_line(job, quiet=quiet)


def _run(
    options: Options, chosen: Chosen | None, library: Library, connection: _Connection, reporter: Reporter
) -> None:
    """Run one job of a command line, and print its outcome.

    Raises:
        DistconvError: the job failed; a verification found differences.
        EndOfWatchError: the interruption of a watch, also of one that was still to begin.
    """
    if options.action == "models":
        reporter.say(models_text(library.heads()))
        return
    try:
        outcome = run(options, chosen, library, connection.made(options.patience), reporter)
    except KeyboardInterrupt as interruption:
        if options.watch and not isinstance(interruption, EndOfWatchError):
            raise EndOfWatchError(0) from interruption
        raise
    if options.action == "diff":
        # Also where they differ: its report is what was asked for.
        reporter.say(outcome_text(outcome))
    if outcome.differences:
        raise JobError(joined(outcome.differences))
    reporter.detail(phases_text(outcome.report))
    if options.sources is None and options.action != "diff":
        reporter.say(outcome_text(outcome, tensors=options.tensors))


class _Connection:
    """The connection to the other processes, made on first use: most mistakes are found before."""

    def __init__(self, start: Launch) -> None:
        self._start = start
        self._processes: Processes | None = None

    def made(self, patience: float = PATIENCE) -> Processes:
        """The processes, which are waited for as long as patience, in seconds, lasts.

        Raises:
            LauncherError: they cannot find each other.
            LostError: some of them never came.
        """
        if self._processes is None:
            self._processes = connect(self._start, patience)
            self._processes.end_if_stuck(lambda loss: Reporter(rank=0).fail(str(loss)))
        return self._processes

    def is_made(self) -> bool:
        """Whether there is a connection."""
        return self._processes is not None

    def leave(self, patience: float | None = None) -> None:
        """Leave the others, if there is a connection; with `patience` as `Processes.close`."""
        if self._processes is not None:
            self._processes.close(patience)

    def leave_after(self, failure: BaseException | None) -> None:
        """Leave the others after a failure that all of them know.

        A launcher ends all processes when the first one leaves, so they wait for rank 0 to print the error.
        """
        if failure is not None and not isinstance(failure, LauncherError):
            with contextlib.suppress(LauncherError):
                self.made()
        self.leave()

    def has_to_tell(self) -> bool:
        """Whether this process has to tell that the job ends; without a connection none knows of the others."""
        return self._processes is None or self._processes.has_to_tell()

    def desert(self, loss: LostError) -> None:
        """Leave after a loss."""
        if self._processes is not None:
            self._processes.desert(str(loss))

    def abort(self) -> None:
        """End all processes."""
        if self._processes is not None:
            self._processes.abort()
