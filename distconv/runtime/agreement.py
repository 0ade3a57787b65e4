"""Phases of a job on several processes: a failure anywhere becomes the same error everywhere.

Owns the exchange of outcomes, the ranks that an error names, and the division of parts that rank 0 hands out. A process
that fails raises the alarm at once; every process ends the phase by sharing its outcome; then all raise the same error.
Knows nothing of the content of a phase.
"""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from distconv.errors import (
    DistconvError,
    InputError,
    JobError,
    LostError,
    SpoiledError,
    StoppedError,
    missing_package,
    system_problem,
)
from distconv.runtime.hand_out import HandOut, Task, attempt_parts, values_of
from distconv.runtime.interruption import interruptions
from distconv.runtime.processes import Processes
from distconv.runtime.progress import Progress, following

_LOG = logging.getLogger("distconv")

Value = TypeVar("Value")

# What a process is doing, unless a phase says more.
_PREPARING = "preparing"


def on_first(processes: Processes, phase: Callable[[], Any], doing: str = _PREPARING) -> Any:
    """Run a phase on rank 0 alone; its result, plain JSON data, on every process. `doing` is what it does, in words.

    Raises:
        DistconvError: the error of the phase, on every process.
    """
    outcome = _attempt(processes, phase, doing) if processes.rank == 0 else None
    return _values([processes.share(outcome)])[0]


def on_first_with_hand_out(
    processes: Processes, phase: Callable[[HandOut], Any], tasks: Sequence[Task], threads: int, doing: str = _PREPARING
) -> Any:
    """Run a phase on rank 0 that hands out tasks to all processes; its result, plain JSON data, on every process.

    `tasks` are the functions that may be handed out; a process runs its parts on `threads` threads.

    Raises:
        DistconvError: the error of the phase or of a part, on every process.
    """
    known = {task.__name__: task for task in tasks}

    def own(task: str, parts: Sequence[Any]) -> dict[str, Any]:
        mine = parts[processes.rank :: processes.size]
        outcome = _attempt(processes, lambda: attempt_parts(known[task], mine, threads), doing)
        return outcome | {"rank": processes.world_rank, "host": socket.gethostname()}

    def hand_out(task: Task, parts: Sequence[Any]) -> list[Any]:
        processes.share({"task": task.__name__, "parts": parts})
        shares = _values(processes.collect(own(task.__name__, parts)))
        return values_of([shares[number % len(shares)][number // len(shares)] for number in range(len(parts))])

    if processes.rank == 0:
        told = processes.share({"task": None, "outcome": _attempt(processes, lambda: phase(hand_out), doing)})
    else:
        while (told := processes.share(None))["task"] is not None:
            processes.collect(own(told["task"], told["parts"]))
    return _values([told["outcome"]])[0]


def on_all(
    processes: Processes, phase: Callable[[], Value], tell: Callable[[Value], Any], doing: str = _PREPARING
) -> tuple[Value, list[Any]]:
    """Run a phase on every process; this process's result, and `tell(result)`, plain JSON data, of every rank.

    Raises:
        DistconvError: one error for the failures of all ranks, the same on every process.
    """
    value: Value

    def attempt() -> Any:
        nonlocal value
        value = phase()
        return tell(value)

    outcome = _attempt(processes, attempt, doing)
    if outcome["error"] is not None:
        processes.raise_alarm()
    outcome |= {"rank": processes.world_rank, "host": socket.gethostname()}
    told = _values(processes.collect(outcome))
    return value, told


def _attempt(processes: Processes, phase: Callable[[], Any], doing: str) -> dict[str, Any]:
    """The outcome of a phase as plain data: its value, or its error and problems.

    Raises:
        LostError: another process was lost meanwhile, so that there is nobody to agree with.
        KeyboardInterrupt: the phase was interrupted, whatever error came of that: launchers interrupt all processes,
            so none waits for an outcome.
    """
    processes.progress.begin(doing)
    try:
        with interruptions(), following(processes.progress):
            return {"error": None, "problems": [], "value": phase()}
    except LostError:
        raise
    except Exception as error:  # noqa: BLE001 - defects included: others would wait for an outcome that never comes
        if isinstance(error, OSError):
            # Whoever called the system could not say more about it.
            _LOG.debug("%s: an error of the operating system", doing, exc_info=error)
            error = JobError(system_problem(_where(processes.progress, doing, error), error))
        if isinstance(error, ModuleNotFoundError) and (problem := missing_package(error)) is not None:
            error = JobError(problem)
        if isinstance(error, MemoryError):
            error = JobError(f"{doing}: not enough memory ({error}); start fewer processes on this host")
        return _described(error)


def _where(progress: Progress, doing: str, error: OSError) -> str:
    """What was being done as a system call failed, and with which file, if that is known."""
    place = error.filename if isinstance(error.filename, str) else next(iter(progress.beat().places), None)
    return doing if place is None else f"{doing}: {place}"


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, DistconvError):
        problems = error.problems if isinstance(error, InputError) else [str(error)]
        spoiled = isinstance(error, SpoiledError)
        return {"error": type(error).__name__, "problems": problems, "value": None, "spoiled": spoiled}
    text = "".join(traceback.format_exception(error)).rstrip()
    return {"error": "defect", "problems": [f"unexpected {type(error).__name__}: {error}\n{text}"], "value": None}


def _values(outcomes: list[dict[str, Any]]) -> list[Any]:
    """The values of outcomes; raises one error for all that failed."""
    if any(each["error"] is not None for each in outcomes):
        raise _as_error(outcomes)
    return [each["value"] for each in outcomes]


def _as_error(outcomes: list[dict[str, Any]]) -> DistconvError:
    failed = [each for each in outcomes if each["error"] is not None]
    causes = [each for each in failed if each["error"] != StoppedError.__name__] or failed
    if all(each["error"] == InputError.__name__ and each["problems"] == causes[0]["problems"] for each in causes):
        return InputError(causes[0]["problems"])
    lines = []
    for each in causes:
        where = f"rank {each['rank']} on {each['host']}: " if "rank" in each else ""
        lines += [f"{where}{problem}" for problem in each["problems"]]
    text = "\n".join(lines)
    return SpoiledError(text) if any(each.get("spoiled") for each in failed) else JobError(text)
