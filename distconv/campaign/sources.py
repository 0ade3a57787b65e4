"""The directories that `sources` means: those that match a pattern, that a file lists, or that are given as they are.

Owns the grammar of patterns and lists. Nothing that cannot be read is passed over in silence. Converts nothing.
"""

from __future__ import annotations

import glob
import os
import stat
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from distconv.errors import InputError, named, reading, system_problem
from distconv.path_kinds import LIST_MARK
from distconv.runtime.regular_files import read_file

_ANY_DEPTH = "**"
_COMMENT = "#"


def directories(sources: str | Sequence[str]) -> list[str]:
    """The paths of the directories, as they are given or found, in order; none is no error.

    A text is a pattern, of which `*`, `?`, `[…]` match within a name, and `**` any number of directories, none of them
    hidden unless the pattern says so; or it is `@FILE`, with a path a line. Files match no pattern; links that lead
    nowhere do, so that somebody says it. Paths of a list are taken as they are, from the working directory on; empty
    lines and those that begin with `#` are none.

    Raises:
        InputError: the list, or a directory on the way of a pattern, cannot be read.
    """
    if not isinstance(sources, str):
        return list(sources)
    if sources.startswith(LIST_MARK):
        return _listed(Path(sources.removeprefix(LIST_MARK)))
    return _matching(sources)


def nothing_problem(sources: str | Sequence[str]) -> str:
    """That `sources` means no directory, in words, and what is there instead."""
    if not isinstance(sources, str):
        return "sources: the list is empty; nothing to do"
    if sources.startswith(LIST_MARK):
        return f"sources={sources}: the file names no directory; nothing to do"
    known = "/" if sources.startswith("/") else ""
    for part in _parts(sources):
        if glob.has_magic(part) or not os.path.isdir(os.path.join(known, part)):
            break
        known = os.path.join(known, part)
    holds = named(sorted(os.listdir(known or ".")), 3) or "nothing"
    return f"sources={sources}: matches no directory; nothing to do; {known or 'the working directory'} holds {holds}"


def _listed(path: Path) -> list[str]:
    with reading(f"sources={LIST_MARK}{path}", "no such file"):
        content = read_file(path).removeprefix(BOM_UTF8)
    lines = (each.removesuffix("\r") for each in os.fsdecode(content).split("\n"))
    return [line for line in lines if line.strip() and not line.startswith(_COMMENT)]


def _matching(pattern: str) -> list[str]:
    problems: list[str] = []
    found = ["/" if pattern.startswith("/") else ""]
    for part in _parts(pattern):
        found = [path for place in found for path in _step(place, part, problems)]
    if problems:
        raise InputError([f"sources={pattern}: {problem}" for problem in dict.fromkeys(problems)])
    return [path for path in dict.fromkeys(found) if path and _may_be_meant(path)]


def _may_be_meant(path: str) -> bool:
    """Whether a path that matches is of a directory, or of something that cannot be looked at, as its job says then."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return os.path.islink(path)
    except OSError:
        return True


def _parts(pattern: str) -> Iterable[str]:
    return filter(None, pattern.split("/"))


def _step(place: str, part: str, problems: list[str]) -> Iterator[str]:
    """The paths in a place that a part of a pattern matches; what cannot be read is added to the problems."""
    if part == _ANY_DEPTH:
        yield place
        for name in _names(place, problems):
            path = os.path.join(place, name)
            # Links may lead in a circle.
            if not name.startswith(".") and os.path.isdir(path) and not os.path.islink(path):
                yield from _step(path, part, problems)
    elif not glob.has_magic(part):
        path = os.path.join(place, part)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            problems.append(system_problem(f"{path}: cannot be looked at", error))
            return
        yield path
    else:
        is_shown = part.startswith(".")
        names = (name for name in _names(place, problems) if fnmatchcase(name, part))
        yield from (os.path.join(place, name) for name in names if is_shown or not name.startswith("."))


def _names(place: str, problems: list[str]) -> list[str]:
    try:
        return sorted(os.listdir(place or "."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(system_problem(f"{place or '.'}: cannot be read", error))
        return []
