"""What processes of any launcher have in common: one watches all, all watch one, and a clerk speaks for each.

Owns who watches whom, and how a process leaves without the others. By which means it speaks, its subclasses know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from distconv.runtime.clerk import Clerk
from distconv.runtime.progress import Beat, Progress
from distconv.runtime.watch import Watch


class WatchedProcesses(ABC):
    """Processes of which rank 0 watches all others, and they watch rank 0.

    A subclass begins the beat of its clerk when it can reach the others. Without a `thread`, because its means allow
    none, nobody is missed.
    """

    def __init__(self, rank: int, size: int, patience: float, *, thread: bool = True) -> None:
        self.rank = self.world_rank = rank
        self.size = size
        self.progress = Progress()
        # The number of exchanges so far.
        self._number = 0
        watched = (each for each in range(size) if each != rank and 0 in (each, rank))
        self._watch = Watch(watched, patience)
        # The last beat that the others were told.
        self._published: Beat | None = None
        self._clerk = Clerk(self.progress, self._watch, self._broken, thread=thread)

    def be_patient(self, seconds: float) -> None:
        """Bear silence for so many seconds."""
        self._watch.patience = seconds

    def begin_to_move(self) -> None:
        """The number of exchanges is the same on all processes."""
        self.progress.begin_to_move(self._number)

    def moved_elsewhere(self) -> int:
        """What their beats have told."""
        return self._watch.moved(self.progress.number)

    def abandon(self, reason: str) -> None:
        """Tell the others, while they wait, that this process has left, and why."""
        self._clerk.leave()
        try:
            self._say_that_it_leaves(reason)
        finally:
            self._clerk.stop()

    def has_to_tell(self) -> bool:
        """Lower ranks that have told have abandoned the job."""
        return self._clerk.is_first_to_tell(self.rank, self._is_abandoned)

    @abstractmethod
    def _say_that_it_leaves(self, reason: str) -> None:
        """Tell the others that this process leaves, and raise the alarm."""

    @abstractmethod
    def _is_abandoned(self) -> bool:
        """Whether a process has said that it leaves; called by the clerk alone."""

    @abstractmethod
    def _broken(self, error: Exception) -> str:
        """The sentence about an error of a call; called by the clerk alone."""
