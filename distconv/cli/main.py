"""The program: outcomes of a command line as text and an exit status.

Owns the connection to the other processes, and the exit status: 0 done, 1 failed, 2 wrong input. Only rank 0 prints.
"""

from __future__ import annotations

import contextlib
import os
import traceback

from distconv.cli.command_line import run_command_line
from distconv.cli.show import Reporter, models_text, outcome_text
from distconv.errors import DistconvError, JobError, LauncherError, joined
from distconv.formats.registry import Options
from distconv.job import run_job
from distconv.models.library import Library
from distconv.planning.look import Chosen
from distconv.runtime.interruption import end_politely
from distconv.runtime.launch import Launch, connect, launch
from distconv.runtime.processes import Processes

# Seconds that an interrupted process leaves to the others for their clean-up.
_FAREWELL_SECONDS = 10
_INTERRUPTED = 130


def main() -> int:
    """Run the command line; the exit status."""
    try:
        start = launch(os.environ)
    except LauncherError as error:
        # Every process prints it: none knows of the others.
        Reporter(rank=0).complain(f"distconv: {error}")
        return error.exit_status
    reporter = Reporter(start.rank, start.size)
    connection = _Connection(start)
    end_politely()
    try:
        run_command_line(
            lambda options, chosen, library: _run(options, chosen, library, connection, reporter),
            quiet=start.rank != 0,
        )
    except DistconvError as error:
        reporter.complain(f"distconv: {error}")
        connection.leave_after(error)
        return error.exit_status
    except SystemExit as leave:
        status = int(leave.code or 0)
        connection.leave_after(leave if status else None)
        return status
    except KeyboardInterrupt as interruption:
        reporter.complain("; ".join(["distconv: interrupted", *map(str, interruption.args)]))
        connection.leave(_FAREWELL_SECONDS)
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: say who failed, and let no process wait for this one
        text = "".join(traceback.format_exception(error))
        Reporter(rank=0).complain(f"{text}distconv: rank {start.rank}: unexpected failure")
        connection.abort()
        return 1
    connection.leave()
    return 0


def _run(
    options: Options, chosen: Chosen | None, library: Library, connection: _Connection, reporter: Reporter
) -> None:
    """Run one job of a command line, and print its outcome.

    Raises:
        DistconvError: the job failed; a verification found differences.
    """
    if options.action == "models":
        reporter.say(models_text(library.heads()))
        return
    outcome = run_job(options, chosen, library, connection.made(), reporter)
    if outcome.differences:
        raise JobError(joined(outcome.differences))
    reporter.say(outcome_text(outcome, tensors=options.tensors))


class _Connection:
    """The connection to the other processes, made on first use: most mistakes are found before."""

    def __init__(self, start: Launch) -> None:
        self._start = start
        self._processes: Processes | None = None

    def made(self) -> Processes:
        """The processes.

        Raises:
            LauncherError: they cannot find each other.
        """
        if self._processes is None:
            self._processes = connect(self._start)
        return self._processes

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

    def abort(self) -> None:
        """End all processes."""
        if self._processes is not None:
            self._processes.abort()
