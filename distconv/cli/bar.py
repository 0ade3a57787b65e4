"""The progress of one phase on all its processes as a line of text.

Owns its words. Never prints, and knows no pauses: `show` does.
"""

from __future__ import annotations

from distconv.observer import Everywhere
from distconv.words import binary

_CELLS = 20


class Bar:
    """The progress of a phase that began at `start`, in seconds; `cells`: whether its lines have a bar of cells.

    The rate is that of the time since the first bytes, which leaves out what was imported before.
    """

    def __init__(self, phase: str, everywhere: Everywhere, *, start: float, cells: bool) -> None:
        self._phase, self._everywhere, self._start, self._cells = phase, everywhere, start, cells
        self._done = 0
        # When the first bytes were done, and how many these were.
        self._first: tuple[float, int] | None = None

    def advance(self, nbytes: int, now: float) -> None:
        """Count bytes of this process."""
        self._done += nbytes
        if self._first is None:
            self._first = now, self._done

    def line(self, now: float) -> str:
        """What is done at this moment: share, bytes, rate, and the time that is left."""
        # What others have done may be of files that are larger than was planned, as a damaged one may be.
        done = min(self._done + self._everywhere.elsewhere(), self._everywhere.nbytes)
        speed = self._speed(done, now)
        left = f", {_clock((self._everywhere.nbytes - done) / speed)} left" if speed else ""
        return f"{self._done_words(done)}, {binary(speed)}/s{left}"

    def last_line(self, now: float, *, is_complete: bool) -> str:
        """What is done at the end: all, if it is complete; and the time that it took."""
        if not is_complete:
            return self.line(now)
        done = self._everywhere.nbytes
        return f"{self._done_words(done)}, {binary(self._speed(done, now))}/s, took {_clock(now - self._start)}"

    def _speed(self, done: int, now: float) -> float:
        """Bytes in a second."""
        since, before = self._first or (now, 0)
        if now > since and done > before:
            return (done - before) / (now - since)
        return done / (now - self._start) if now > self._start else 0

    def _done_words(self, done: int) -> str:
        total = self._everywhere.nbytes
        part = done / total if total else 1
        filled = int(part * _CELLS)
        cells = f" |{'#' * filled}{' ' * (_CELLS - filled)}|" if self._cells else ","
        return f"{self._phase}: {int(part * 100):3}%{cells} {binary(done)} of {binary(total)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
