"""Work that one process hands out in parts: who asks for it knows neither processes nor threads.

Owns what a part came to, and how the problems of many become one error. A part and its value are plain JSON data, so
that any process can do it. Starts no process and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distconv.errors import InputError, raise_if

Task = Callable[[Any], Any]
# Has a task done for each of the parts, by somebody; the values, in the order of the parts.
HandOut = Callable[[Task, Sequence[Any]], "list[Any]"]


def attempt_parts(task: Task, parts: Sequence[Any], threads: int = 1) -> list[tuple[list[str], Any]]:
    """What each part came to, on so many threads: the problems that `InputError` told, and the value without one."""

    def attempt(part: Any) -> tuple[list[str], Any]:
        try:
            return [], task(part)
        except InputError as error:
            return error.problems, None

    if threads == 1 or len(parts) < 2:
        return [attempt(part) for part in parts]
    with ThreadPoolExecutor(threads, thread_name_prefix="parts") as pool:
        return list(pool.map(attempt, parts))


def values_of(outcomes: Sequence[tuple[list[str], Any]]) -> list[Any]:
    """The values of parts.

    Raises:
        InputError: the problems of all parts that have some.
    """
    raise_if([problem for problems, _ in outcomes for problem in problems])
    return [value for _, value in outcomes]


def here(task: Task, parts: Sequence[Any]) -> list[Any]:
    """Do the parts one after the other in this process; of all of them, the problems are told together.

    Raises:
        InputError: a part did.
    """
    return values_of(attempt_parts(task, parts))
