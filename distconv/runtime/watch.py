"""Who has been silent for too long: the decision, and its sentence.

Owns the time that a process may go without progress. It is counted by the watcher's own clock, and only while the
watcher looks: a job that is suspended as a whole and continued has lost nobody. Sends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from distconv.errors import joined
from distconv.runtime.progress import Beat

# Looks in the time of the patience, and the seconds between two.
_LOOKS, _LEAST_SECONDS, _MOST_SECONDS = 20, 0.1, 5.0
# Of the time between two looks so much counts, in multiples of what it should be: more means that the watcher itself
# was stopped, or had no processor.
_COUNTED = 3
# Processes do not start all at once; none is missed before it has had so many seconds to come.
_ARRIVAL_SECONDS = 60.0


class Silence:
    """The seconds since the last sign of life, as far as somebody looked; each look counts for `longest` at most."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked = clock()
        self.seconds = 0.0

    def look(self, longest: float) -> float:
        """Look again; the seconds of silence."""
        now = self._clock()
        self.seconds += min(now - self._looked, longest)
        self._looked = now
        return self.seconds

    def end(self) -> None:
        """There was a sign of life."""
        self.look(0)
        self.seconds = 0.0


class Watch:
    """The other processes of a job as this one knows them; `patience` in seconds, 0 for ever."""

    def __init__(self, ranks: Iterable[int], patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self._clock = clock
        self._beats: dict[int, Beat | None] = dict.fromkeys(ranks)
        self._silences = {rank: Silence(clock) for rank in self._beats}

    @property
    def ranks(self) -> list[int]:
        """The ranks that are watched."""
        return list(self._silences)

    @property
    def seconds_between_looks(self) -> float:
        """How often to look, and to be looked at."""
        return min(max(self.patience / _LOOKS, _LEAST_SECONDS), _MOST_SECONDS) if self.patience else _MOST_SECONDS

    @property
    def seconds_to_arrive(self) -> float | None:
        """How long to wait for a process that has never been heard of; `None` for ever."""
        return max(self.patience, _ARRIVAL_SECONDS) if self.patience else None

    def hear(self, rank: int, beat: Beat) -> None:
        """The last beat of a process; it is a sign of life if anything is other than in the one before."""
        if rank in self._silences and beat != self._beats[rank]:
            self._beats[rank] = beat
            self._silences[rank].end()

    def moved(self, number: int) -> int:
        """The bytes of the phase of a number that those who are watched were done with, as far as was heard."""
        beats = (beat for beat in list(self._beats.values()) if beat is not None)
        return sum(beat.moved for beat in beats if beat.number == number)

    def forget(self, rank: int) -> None:
        """A process has left the job, and may be silent."""
        self._silences.pop(rank, None)

    def look(self) -> list[int]:
        """Look at all of them; those that have been silent for longer than the patience."""
        return [
            rank
            for rank, silence in self._silences.items()
            if self.is_too_long(silence, _ARRIVAL_SECONDS if self._beats[rank] is None else 0)
        ]

    def silence(self) -> Silence:
        """A silence that begins now, of a process that is asked something."""
        return Silence(self._clock)

    def is_too_long(self, silence: Silence, least: float = 0) -> bool:
        """Look at a silence; whether it outlasts the patience, and `least` seconds."""
        seconds = silence.look(_COUNTED * self.seconds_between_looks)
        return self.patience > 0 and seconds > max(self.patience, least)

    def sentence(self, ranks: Iterable[int]) -> str:
        """Who is silent, where, and what each was doing."""
        return joined([self._sentence(rank) for rank in ranks])

    def no_answer(self) -> str:
        """The sentence about a call without an answer, for which rank 0 and its host are needed."""
        if 0 in self._silences:
            return self._sentence(0)
        return f"no answer from the other processes in {self.patience:g} s; {_ADVICE}"

    def _sentence(self, rank: int) -> str:
        beat = self._beats.get(rank)
        if beat is None:
            return f"rank {rank}: not heard of in {self.seconds_to_arrive or 0:g} s; {_ADVICE}"
        places = f": {' to '.join(beat.places)}" if beat.places else ""
        return (
            f"rank {rank} on {beat.host}: no progress in {self.patience:g} s; it was last seen {beat.doing}{places}; "
            f"{_ADVICE}"
        )


_ADVICE = "the process, its host or a file system has stopped (if a single step may take longer, set patience=SECONDS)"
