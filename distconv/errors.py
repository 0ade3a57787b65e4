"""The errors reported to users. Owns their classes, and the one message made of several problems; prints nothing."""

from __future__ import annotations

import difflib
import errno
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import Any

LINES_SHOWN = 20
# So many may say what to do about them each for itself.
_FEW = 4
# Between a problem and what to do about it.
_AND_THEN = "; "
# What is imported and what has to be installed for it. An installation with `--no-deps` may have none of them.
_PACKAGES = {
    "yaml": "pyyaml",
    "hydra": "hydra-core",
    "omegaconf": "hydra-core",
    "antlr4": "hydra-core",
    **{name: name for name in ("numpy", "torch")},
}
_LONGEST_BITS = 512
# Nothing of that name; or a name, a position or a kind of file that cannot be read.
_ANSWERS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}


class DistconvError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_status = 1


class InputError(DistconvError, ValueError):
    """Wrong input; nothing has been written. `problems` are all problems of the same kind.

    `unreadable`: the operating system failed, so nothing is known of what is there; whoever can do without a file that
    is missing or damaged cannot conclude that it is.
    """

    exit_status = 2

    def __init__(self, problems: str | Iterable[str], *, unreadable: bool = False) -> None:
        self.unreadable = unreadable
        self.problems = [printable(each) for each in ([problems] if isinstance(problems, str) else problems)]
        super().__init__(joined(self.problems))


class LauncherError(InputError):
    """The processes of a launcher cannot find each other."""


class JobError(DistconvError, RuntimeError):
    """A failure with right input: a read error, a full disk, a dead process."""


def fault(what: str) -> JobError:
    """The error for what only a mistake in distconv, or in a model definition, makes possible, found before writing."""
    return JobError(
        f"{what}; nothing has been written: this is a fault of distconv, or of a model definition of your own; please "
        "report it with the line that you typed"
    )


class UnfinishedError(JobError):
    """The end of a job with several sources, of which some failed; `report` has the outcome of each, as plain data."""

    def __init__(self, text: str, report: Mapping[str, Any], *, refused: bool) -> None:
        super().__init__(text)
        self.report = report
        # As if there had been one, and it had been wrong input.
        self.exit_status = InputError.exit_status if refused else JobError.exit_status


class SpoiledError(JobError):
    """A failure after which nothing that has been written can be a part of a result."""


class SourceChangedError(SpoiledError):
    """Files of a source are not as they were when the job looked at them; `problems` names each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(joined(problems))


class ReaderError(JobError):
    """A result that a reader of other programs refuses, or fails with."""


class LostError(JobError):
    """The loss of another process, or of the connection to it: nothing can be agreed on any more."""


class StoppedError(JobError):
    """A stop of this process or thread because another one failed."""


def missing_package(error: ModuleNotFoundError) -> str | None:
    """That a package which is needed is not installed, in words; `None` if the error is about another module."""
    name = (error.name or "").partition(".")[0]
    if name not in _PACKAGES:
        return None
    return f"the package {name} is missing: {sys.executable} -m pip install {_PACKAGES[name]}"


def joined(problems: list[str]) -> str:
    """The problems as one screen of text: a line for each, the rest counted, and once what to do about all of many."""
    remedy = _remedy_of_all(problems)
    shown = [printable(each.removesuffix(remedy)) for each in problems[:LINES_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - LINES_SHOWN} more of the same kind")
    return "\n".join([*shown, printable(remedy.removeprefix(_AND_THEN))] if remedy else shown)


def _remedy_of_all(problems: list[str]) -> str:
    """What all of many problems end with, from a semicolon on; empty if there is none."""
    if len(problems) <= _FEW:
        return ""
    backwards = zip(*(each[::-1] for each in problems), strict=False)
    alike = takewhile(lambda letters: len(set(letters)) == 1, backwards)
    _, semicolon, words = "".join(letters[0] for letters in alike)[::-1].partition(_AND_THEN)
    return semicolon + words


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
        raise InputError(problem, unreadable=tells_nothing(error)) from None


def tells_nothing(error: OSError) -> bool:
    """Whether an error of the operating system is a failure, and not its answer to what is there."""
    return error.errno not in _ANSWERS


def printable(text: str) -> str:
    """A line of text in which what is no visible character is spelled out.

    A name in a checkpoint or of a file may hold a line break, a command to the terminal, or half of a surrogate pair.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def named(names: Iterable[object], limit: int = 5) -> str:
    """A list of names for a message: the first few, then how many more."""
    found = iter(names)
    first = [printable(str(name)) for name in islice(found, limit)]
    rest = sum(1 for _ in found)
    return ", ".join(first) + (f" and {rest} more" if rest else "")


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun for a message: `1 tensor`, `2 tensors`."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def shown(value: Any) -> str:
    """A value in the syntax of the command line; a number that Python would not print, in words."""
    if isinstance(value, str):
        return f"'{value}'" if _is_more_than_text(value) else value
    return json.dumps(_with_short_numbers(value), separators=(",", ":"), default=str, ensure_ascii=False).replace(
        '"', ""
    )


def _with_short_numbers(value: Any) -> Any:
    """A value with words in place of integers that are longer than any that means something."""
    if isinstance(value, Mapping):
        return {_with_short_numbers(key): _with_short_numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_short_numbers(each) for each in value]
    if isinstance(value, int) and value.bit_length() > _LONGEST_BITS:
        return f"an integer of {value.bit_length():,} bits"
    return value


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
            name = key if isinstance(key, str) else shown(key)
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            problems.append(f"unknown key {repr(key) if key is name else name}{hint}")
    return problems
