"""What a job tells whoever started it: progress while it runs, and its outcome.

Owns the shape of both, not their words: the command line and programs show or store them as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from distconv.errors import JobError

# A phase in words, the bytes of it that are done on this process, and the bytes in all.
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True, kw_only=True)
class Everywhere:
    """A phase on all its processes: its bytes, and those that the others have done, as far as rank 0 has heard."""

    nbytes: int
    elsewhere: Callable[[], int]


class Observer:
    """A receiver of the progress of a job; this one ignores it. Methods are called on every process."""

    def planned(self, report: Mapping[str, Any]) -> None:
        """The report of the plan is made; no work has begun."""

    def begin(self, phase: str, nbytes: int, everywhere: Everywhere) -> None:
        """A phase begins that moves or compares `nbytes` bytes on this process."""

    def advance(self, nbytes: int) -> None:
        """Another `nbytes` bytes of the phase are done; called from several threads, one at a time."""

    def note(self, text: str) -> None:
        """Something about the target that a user should know, whatever becomes of the job; called on rank 0."""

    def end(self, *, is_complete: bool) -> None:
        """The phase has ended, on all processes; `is_complete`: none has failed."""

    def checkpoint(self, source: str, target: str, number: int, count: int) -> None:
        """The job of one of several checkpoints begins: the `number`th of `count` that are known."""

    def ended(self, outcome: Outcome | None, why: str | None) -> None:
        """That job has ended, with its outcome, or `None` if it failed; `why` it was skipped or failed, in words."""

    def all_ended(self, report: Mapping[str, Any]) -> None:
        """All jobs of several checkpoints have ended; the report of all of them."""

    def undisturbed(self) -> AbstractContextManager[None]:
        """A context that signals must not interrupt: a commit, and the removal of unfinished files."""
        return nullcontext()


class Telling(Observer):
    """An observer that calls a function of a program; what that raises fails the job."""

    def __init__(self, tell: Progress) -> None:
        self._function = tell
        self._phase, self._done, self._nbytes = "", 0, 0

    def begin(self, phase: str, nbytes: int, everywhere: Everywhere) -> None:  # noqa: ARG002 - of the interface
        """Tell that it begins."""
        self._phase, self._done, self._nbytes = phase, 0, nbytes
        self._tell()

    def advance(self, nbytes: int) -> None:
        """Tell how much is done."""
        self._done += nbytes
        self._tell()

    def _tell(self) -> None:
        try:
            self._function(self._phase, self._done, self._nbytes)
        except Exception as error:
            raise JobError(f"progress raised {type(error).__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The report of a job as plain data; of a verification, the differences in words; and notes for the user.

    `skipped`: why nothing was done, in words, where nothing was to do.
    """

    report: dict[str, Any]
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str | None = None
