"""Which iterations of a running training are complete, as the tracker beside them says.

Owns the reading of trackers while training goes on. Waits for nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from distconv.errors import reading
from distconv.formats.iterations import RELEASE, TRACKER_NAME, iteration_of
from distconv.runtime.regular_files import read_file


def complete(directories: Iterable[str]) -> tuple[list[str], list[str]]:
    """The iterations among the directories that are complete, and in words what never will be.

    Training writes the tracker last, so that it names a complete iteration, and earlier ones are complete, too. One
    that is not there yet, or is just being written, names none.

    Raises:
        InputError: a tracker cannot be read.
    """

    @cache
    def named_in(parent: Path) -> str:
        tracker = parent / TRACKER_NAME
        if not tracker.exists():
            return ""
        with reading(tracker):
            return read_file(tracker).decode(errors="replace").strip()

    found, never = [], []
    for directory in directories:
        path = Path(os.path.abspath(directory))
        iteration = iteration_of(path)
        if iteration is None:
            never.append(
                f"{directory}: is not converted: expected the directory of an iteration, iter_*/ or {RELEASE}/"
            )
        elif _is_complete(iteration, named_in(path.parent)):
            found.append(directory)
    return found, never


def _is_complete(iteration: str, latest: str) -> bool:
    if iteration == RELEASE or not latest.isdecimal():
        return iteration == latest
    return int(iteration) <= int(latest)
