"""The progress of one phase as a line of text: when one is due, and what it says.

Owns its words and its pauses. Never prints: `show` does.
"""

from __future__ import annotations

from distconv.words import binary

_CELLS = 20


class Bar:
    """The progress of a phase of `total` bytes that began at `start`, in seconds; a line each `pause` seconds."""

    def __init__(self, phase: str, total: int, *, start: float, pause: float) -> None:
        self._phase, self._total, self._start, self._pause = phase, total, start, pause
        self._done = 0
        self._due = start

    def advance(self, nbytes: int, now: float) -> str | None:
        """Count bytes; the line, if one is due at this moment."""
        self._done += nbytes
        if now < self._due:
            return None
        self._due = now + self._pause
        return self.line(now)

    def line(self, now: float) -> str:
        """What is done at this moment: part, bar, bytes, speed, and the seconds that it took and will take."""
        part = self._done / self._total if self._total else 1
        seconds = now - self._start
        speed = self._done / seconds if seconds > 0 else 0
        rest = f"<{_clock((self._total - self._done) / speed)}" if speed else ""
        cells = int(part * _CELLS)
        return (
            f"{self._phase}: {int(part * 100):3}% |{'#' * cells}{' ' * (_CELLS - cells)}| "
            f"{binary(self._done)} of {binary(self._total)} [{_clock(seconds)}{rest}, {binary(speed)}/s]"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
