"""The errors reported to users. Owns their classes, and the one message made of several problems; prints nothing."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LINES_SHOWN = 20


class DistconvError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_status = 1


class InputError(DistconvError, ValueError):
    """Wrong input; nothing has been written. `problems` are all problems of the same kind."""

    exit_status = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(joined(self.problems))


class LauncherError(InputError):
    """The processes of a launcher cannot find each other."""


class JobError(DistconvError, RuntimeError):
    """A failure with right input: a read error, a full disk, a dead process."""


class StoppedError(JobError):
    """A stop of this process or thread because another one failed."""


def joined(problems: list[str]) -> str:
    """The problems as one screen of text: each on its own line, the rest counted."""
    shown = problems[:LINES_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - LINES_SHOWN} more of the same kind")
    return "\n".join(shown)


def raise_if(problems: list[str]) -> None:
    """Raise `InputError` with all the problems, if there are any."""
    if problems:
        raise InputError(problems)


def system_problem(doing: object, error: OSError) -> str:
    """An error of the operating system as a message: `doing`, which failed, and the system's reason."""
    return f"{doing}: {error.strerror or error}"


@contextmanager
def reading(where: object, missing: str | None = None) -> Iterator[None]:
    """Turn errors of the operating system about reading `where` into `InputError`; `missing`: its text if absent."""
    try:
        yield
    except OSError as error:
        absent = missing is not None and isinstance(error, FileNotFoundError)
        problem = f"{where}: {missing}" if absent else system_problem(f"{where}: cannot be read", error)
        raise InputError(problem) from None


def named(names: Iterable[object], limit: int = 5) -> str:
    """A list of names for a message: the first `limit`, and the number of further ones."""
    everything = [str(name) for name in names]
    rest = len(everything) - limit
    return ", ".join(everything[:limit]) + (f" and {rest} more" if rest > 0 else "")


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun for a message: `1 tensor`, `2 tensors`."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def shown(value: Any) -> str:
    """A value in the syntax of the command line."""
    if isinstance(value, str):
        return f"'{value}'" if _is_more_than_text(value) else value
    return json.dumps(value, separators=(",", ":"), default=str, ensure_ascii=False).replace('"', "")


def _is_more_than_text(text: str) -> bool:
    """Whether text must be in quotes, because it looks like a number, a list or a truth value."""
    try:
        return not isinstance(json.loads(text), str)
    except ValueError:
        return False


def unknown_keys(content: Mapping[Any, Any], known: Collection[str]) -> list[str]:
    """A problem per unknown key, with the nearest known one."""
    problems = []
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            problems.append(f"unknown key {key!r}{hint}")
    return problems
