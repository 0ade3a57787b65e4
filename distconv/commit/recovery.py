"""What killed jobs left in a target: unfinished commits are concluded, the rest is listed, and removed on request.

Owns what becomes of directories of work whose jobs have ended. Nothing of a job that runs is touched: who holds a lock
says which directory of work is its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distconv.commit.area import Area, areas, is_work
from distconv.commit.journal import finished_in
from distconv.commit.lock import Lock, holder, take
from distconv.commit.swap import unfinished
from distconv.commit.target import Target
from distconv.errors import InputError, counted

_ATTEMPTS = 10
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What a job left, or uses if it is `running`; `nbytes` in bytes.

    `unfinished`: it died while it committed; `finished`: the number of files that can be continued.
    """

    path: Path
    nbytes: int
    running: bool
    unfinished: bool
    finished: int

    def __str__(self) -> str:
        if self.running:
            return f"{self.path} is of a job that is running"
        return left_over(self.path, self.finished)

    def summary(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"path": str(self.path), "bytes": self.nbytes, "running": self.running}


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What was removed, what is still there, and what should be known of commits that were unfinished."""

    removed: tuple[Leftover, ...]
    kept: tuple[Leftover, ...]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "removed": [each.summary() for each in self.removed],
            "kept": [each.summary() for each in self.kept],
            "notes": list(self.notes),
        }


def leftovers(directory: Path) -> list[Leftover]:
    """What jobs have in a target directory, and beside it for a result that is this directory itself.

    Raises:
        InputError: the directory cannot be read.
    """
    return [each for area in _areas(directory) for each in _in_area(area)]


def clean(directory: Path) -> Cleaned:
    """Remove what `leftovers` finds, but for jobs that run, after unfinished commits have been concluded.

    Raises:
        InputError: the directory cannot be read.
    """
    removed: list[Leftover] = []
    kept: list[Leftover] = []
    notes: list[str] = []
    for area in _areas(directory):
        found = _in_area(area)
        try:
            notes += _clean_area(area, [each for each in found if not each.running])
        except OSError as error:
            notes.append(f"{area.home}: cannot be cleaned: {error.strerror}: {error.filename}")
        for each in found:
            (kept if os.path.lexists(each.path) else removed).append(each)
    return Cleaned(removed=tuple(removed), kept=tuple(kept), notes=tuple(notes))


def check_settled(target: Target) -> None:
    """Check that no commit to a target is unfinished.

    Raises:
        InputError: one is, so what is there is none of the results that were there before or were to be there; or
            the directory cannot be read.
    """
    try:
        found = target.area.works()
    except OSError as error:
        raise _not_readable(target.directory, error) from None
    for work in found:
        if _is_unfinished(work):
            raise InputError(
                f"target={target.directory}: a job was killed while it put {target.result.name} in place, unless it "
                f"still runs: {work}; the next job with this target, or action=clean, takes that back"
            )


def recover(work: Path) -> list[str]:
    """Conclude the commit that a killed job left unfinished, if it did, and say so; its lock must be held.

    Raises:
        InputError: it cannot be concluded; nothing is lost.
    """
    swap = unfinished(work)
    if swap is None:
        return []
    complete = swap.is_complete()
    try:
        swap.conclude(durable=True)
    except OSError as error:
        raise InputError(
            f"{work}: a job was killed while it put {swap.result} in place, and that cannot be taken back: "
            f"{error.strerror}: {error.filename}; keep both until it can"
        ) from None
    if not complete:
        return [f"a job was killed while it put {swap.result} in place: that has been taken back"]
    remove(work)
    return [f"a job was killed after it had put {swap.result} in place: what that replaced has been removed"]


def remove(work: Path) -> None:
    """Remove a directory of work, as far as possible."""
    for _ in range(_ATTEMPTS):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        # Another process that is being ended may still have added a file.
        time.sleep(_PAUSE_SECONDS)


def left_over(work: Path, finished: int) -> str:
    """What a directory of work is that no job uses, and what to do with it."""
    if not finished:
        return f"{work} is left of a job that was killed; action=clean removes it"
    what = f"is left of a job that did not end, with {counted(finished, 'finished file')}"
    return f"{work} {what}: the same command continues it, action=clean removes it"


def _clean_area(area: Area, found: Sequence[Leftover]) -> list[str]:
    """Remove what is there of an area; the notes."""
    if not found:
        return []
    notes = []
    lock = take(area.lock, "clean")
    try:
        for each in found:
            # Without the lock, whoever has it may be concluding that commit.
            if not is_work(each.path) or (each.unfinished and not isinstance(lock, Lock)):
                continue
            try:
                notes += recover(each.path)
            except InputError as error:
                notes.append(str(error))
            else:
                remove(each.path)
    finally:
        if isinstance(lock, Lock):
            lock.release()
    return notes


def _areas(directory: Path) -> list[Area]:
    try:
        return areas(directory)
    except OSError as error:
        raise _not_readable(directory, error) from None


def _not_readable(directory: Path, error: OSError) -> InputError:
    return InputError(f"target={directory}: cannot be read: {error.strerror}: {error.filename}")


def _in_area(area: Area) -> list[Leftover]:
    """The directories of work in an area; if there are none, its lock file."""
    found = area.works() or [area.lock]
    # Only now: who takes the lock after this has a directory of work that is not listed.
    at_work = holder(area.lock)
    return [
        Leftover(
            path=path,
            nbytes=_nbytes(path),
            # Of a holder that is not known, everything may be.
            running=at_work is not None and (path == area.lock or at_work.work in ("", path.name)),
            unfinished=_is_unfinished(path),
            finished=len(finished_in(path)),
        )
        for path in found
    ]


def _is_unfinished(work: Path) -> bool:
    """Whether a commit has begun there and not come to its end; if that cannot be read, it may have."""
    try:
        swap = unfinished(work)
    except InputError:
        return True
    return swap is not None and not swap.is_complete()


def _nbytes(path: Path) -> int:
    total = 0
    for parent, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
