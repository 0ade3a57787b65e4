"""What this process last did: the steps that it finished, the phase that it is in, the file that it is at.

Owns the count that other processes watch (`watch`): it moves only when work does, so that a process that hangs stands
still in the eyes of the others. Sends nothing, and knows no time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# That of the job for which the caller works. A file may be opened anywhere below; what is not called by a job has none.
_FOLLOWED: ContextVar[Progress | None] = ContextVar("progress", default=None)


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a process had done at some time: its host, its finished steps, its phase, and the files that it was at.

    `moved`: the bytes of the phase of this `number` in which bytes move that it was done with, also when it waits.
    """

    host: str
    steps: int
    doing: str
    places: tuple[str, ...]
    number: int = 0
    moved: int = 0

    def to_json(self) -> list[Any]:
        """The beat as plain data."""
        return [self.host, self.steps, self.doing, self.places, self.number, self.moved]

    @classmethod
    def from_json(cls, data: Any) -> Beat:
        """The beat described by its `to_json`."""
        host, steps, doing, places, number, moved = data
        return cls(host=host, steps=steps, doing=doing, places=tuple(places), number=number, moved=moved)


class Progress:
    """The progress of this process; every method is cheap, and may be called from any thread."""

    def __init__(self) -> None:
        self._host = os.uname().nodename
        self._steps = 0
        self._doing = "starting"
        self._waits = False
        self._number, self._moved = 0, 0
        # By thread, those that turned to a file longest ago first.
        self._places: dict[int, tuple[str, ...]] = {}

    def begin(self, doing: str) -> None:
        """A phase begins: what it does, such as "writing"."""
        self._doing = doing
        self._places.clear()
        self.step()

    def begin_to_move(self, number: int) -> None:
        """A phase begins in which bytes move, on all processes under this number."""
        self._number, self._moved = number, 0

    @property
    def number(self) -> int:
        """The number of the last phase in which bytes move."""
        return self._number

    def move(self, nbytes: int) -> None:
        """Bytes of the phase are done; never called from two threads at a time."""
        self._moved += nbytes

    def step(self) -> None:
        """A step is finished, such as a block that was moved."""
        # Steps of two threads may count as one, but never as none.
        self._steps += 1

    def reach(self, *places: str) -> None:
        """The calling thread has finished a step, and turns to these files."""
        thread = threading.get_ident()
        self._places.pop(thread, None)
        self._places[thread] = places
        self.step()

    def leave(self) -> None:
        """The calling thread has finished with its files."""
        self._places.pop(threading.get_ident(), None)
        self.step()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the process waits for others; every look at them is a step."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
            self.step()

    def beat(self) -> Beat:
        """What this process has done up to now."""
        # Of several threads, the one that has been at its files for longest is the one that hangs.
        places = () if self._waits else next(iter(list(self._places.values())), ())
        return Beat(
            host=self._host,
            steps=self._steps,
            doing="waiting for the others" if self._waits else self._doing,
            places=places,
            number=self._number,
            moved=self._moved,
        )


@contextmanager
def following(progress: Progress) -> Iterator[None]:
    """A context in which files that are opened, by the calling thread, are steps of this progress."""
    token = _FOLLOWED.set(progress)
    try:
        yield
    finally:
        _FOLLOWED.reset(token)


def reached(path: str | Path) -> None:
    """A file is about to be opened: a step of the progress that is followed, if any."""
    progress = _FOLLOWED.get()
    if progress is not None:
        progress.reach(str(path))


def finished() -> None:
    """The calling thread has finished with its files: a step of the progress that is followed, if any."""
    progress = _FOLLOWED.get()
    if progress is not None:
        progress.leave()
