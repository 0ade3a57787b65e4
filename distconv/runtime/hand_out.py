"""Tasks handed out in parts: the caller of a `HandOut` knows neither processes nor threads.

Owns the outcome of a part, and the one error made of the problems of many. Parts and their values are plain JSON data,
so that any process can run them. Starts no process and sends nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from threading import Thread
from typing import Any, TypeVar

from distconv.errors import InputError, raise_if
from distconv.runtime.progress import finished

Part = TypeVar("Part")
Value = TypeVar("Value")
Task = Callable[[Any], Any]
# Runs a task on every part, possibly on other processes; the values in the order of the parts. Raises `InputError` with
# the problems of all parts.
HandOut = Callable[[Task, Sequence[Any]], "list[Any]"]

# Requests of few bytes that a process has under way at a time: a file system far away takes longer for each than it
# takes to use the answer.
AT_ONCE = 16


def attempt_parts(task: Task, parts: Sequence[Any], threads: int = 1) -> list[tuple[list[str], Any]]:
    """Run a task on every part, on `threads` threads; per part the problems of its `InputError`, and its value."""

    def attempt(part: Any) -> tuple[list[str], Any]:
        try:
            return [], task(part)
        except InputError as error:
            return error.problems, None

    return on_threads(attempt, parts, threads)


def on_threads(function: Callable[[Part], Value], parts: Sequence[Part], threads: int) -> list[Value]:
    """The values of a function of every part, in their order; its threads follow the progress that the caller does.

    An interruption of the caller waits for none of them: a file system that hangs would keep the process from ending.
    The first error of a part, in their order, is raised when all threads have stopped.
    """

    def one(part: Part) -> Value:
        try:
            return function(part)
        finally:
            # A thread that is done with its file is not the one that hangs.
            finished()

    if threads == 1 or len(parts) < 2:
        return list(map(one, parts))
    values: dict[int, Value] = {}
    errors: dict[int, BaseException] = {}
    # A deque's `popleft` is atomic.
    left = deque(enumerate(parts))

    def work() -> None:
        while left and not errors:
            try:
                number, part = left.popleft()
            except IndexError:
                return
            try:
                values[number] = one(part)
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                errors[number] = error

    # In the context of the caller, a copy for each since two threads cannot be in one.
    contexts = [copy_context() for _ in range(min(threads, len(parts)))]
    workers = [Thread(target=each.run, args=(work,), daemon=True, name="parts") for each in contexts]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        left.clear()
    if errors:
        raise errors[min(errors)]
    return [values[number] for number in range(len(parts))]


def values_of(outcomes: Sequence[tuple[list[str], Any]]) -> list[Any]:
    """The values in the outcomes of parts.

    Raises:
        InputError: the problems of all parts.
    """
    raise_if([problem for problems, _ in outcomes for problem in problems])
    return [value for _, value in outcomes]


def here(task: Task, parts: Sequence[Any]) -> list[Any]:
    """The `HandOut` of a single process: runs the parts one after the other; their values.

    Raises:
        InputError: the problems of all parts.
    """
    return values_of(attempt_parts(task, parts))
