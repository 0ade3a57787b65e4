"""Small checkpoints side by side: each is one process's, and the work of all of them is balanced by bytes.

Owns which checkpoints these are, which process has which, and what is told of them. How one is converted, it is given.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from distconv.campaign.names import Checkpoint
from distconv.campaign.outcomes import Ended
from distconv.observer import Everywhere, Observer
from distconv.runtime.agreement import on_all
from distconv.runtime.processes import AloneAmong, Processes
from distconv.runtime.progress import reached

# Up to this share of a process, more of the time of a job on all of them goes to talking than to moving bytes.
_SMALL_BYTES = 256 * 1024**2
# Above this ratio of the longest share to an equal one, some processes would wait for too long.
_UNEQUAL = 1.5

# Runs the job of a checkpoint on these processes, and tells this observer of its progress.
RunOne = Callable[[Checkpoint, Processes, Observer], Ended]


def run_small(
    jobs: Sequence[Checkpoint], processes: Processes, observer: Observer, run_one: RunOne
) -> dict[int, Ended]:
    """Run the small ones of several jobs side by side; by position what became of them, on every process.

    The observer of a process hears of its own ones while they run, and of those of the others when all have ended.

    Raises:
        LostError: another process was lost.
    """
    if processes.size == 1 or len(jobs) == 1:
        return {}
    mine = shares(_sizes(jobs, processes), processes.size)[processes.rank]
    alone = AloneAmong(processes)

    def run_mine() -> list[Any]:
        found = []
        for number in mine:
            if alone.alarmed():
                # What that process has to say comes instead of all outcomes.
                break
            job = jobs[number]
            own = observer if processes.rank == 0 else _NotesKept(observer)
            observer.checkpoint(job.source, job.target, number + 1, len(jobs))
            ended = run_one(job, alone, own)
            observer.ended(ended.done, ended.why)
            found.append([number, ended.to_plain(), own.notes if isinstance(own, _NotesKept) else []])
        return found

    _, told = on_all(processes, run_mine, lambda found: found, "converting small checkpoints side by side")
    result = {}
    for number, plain, notes in sorted(each for share in told for each in share):
        result[number] = Ended.from_plain(jobs[number], plain)
        if number not in mine:
            _tell(observer, result[number], number, len(jobs), notes if processes.rank == 0 else [])
    return result


def _sizes(jobs: Sequence[Checkpoint], processes: Processes) -> list[int]:
    """The sizes of the sources in bytes, of which every process measures some."""
    rank, count = processes.rank, processes.size
    measured = [Path(job.source) for job in jobs[rank::count]]
    _, told = on_all(processes, lambda: [size_of(each) for each in measured], list, "measuring the sources")
    return [told[number % count][number // count] for number in range(len(jobs))]


def shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """For each of `count` processes the positions of the checkpoints that it converts alone; `sizes` in bytes.

    What is in no share is for all processes together: what is not small, and the largest ones as long as they keep the
    rest from being balanced.
    """
    largest_first = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    small = [number for number in largest_first if sizes[number] <= _SMALL_BYTES * count]
    for start in range(len(small)):
        found = _balanced(sizes, small[start:], count)
        loads = [sum(sizes[number] for number in share) for share in found]
        if all(found) and max(loads) * count <= _UNEQUAL * sum(loads):
            return [sorted(share) for share in found]
    return [[] for _ in range(count)]


def _balanced(sizes: Sequence[int], numbers: Sequence[int], count: int) -> list[list[int]]:
    """The positions, largest first, each given to the process that has the least by then."""
    loads = [(0, rank) for rank in range(count)]
    found: list[list[int]] = [[] for _ in range(count)]
    for number in numbers:
        load, rank = loads[0]
        found[rank].append(number)
        # An empty one takes some time, too.
        heapq.heapreplace(loads, (load + max(sizes[number], 1), rank))
    return found


def size_of(directory: Path) -> int:
    """The bytes of all files below a directory, links to files followed; what cannot be read counts nothing."""
    total = 0
    for parent, _, names in os.walk(directory):
        reached(parent)
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                # Whoever converts it says so.
                continue
    return total


def _tell(observer: Observer, ended: Ended, number: int, count: int, notes: Sequence[str]) -> None:
    observer.checkpoint(ended.checkpoint.source, ended.checkpoint.target, number + 1, count)
    for note in notes:
        observer.note(note)
    observer.ended(ended.done, ended.why)


class _NotesKept(Observer):
    """Tells an observer all but notes, which it keeps for rank 0 to tell."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.notes: list[str] = []

    def planned(self, report: Mapping[str, Any]) -> None:
        self._observer.planned(report)

    def begin(self, phase: str, nbytes: int, everywhere: Everywhere) -> None:
        self._observer.begin(phase, nbytes, everywhere)

    def advance(self, nbytes: int) -> None:
        self._observer.advance(nbytes)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, *, is_complete: bool) -> None:
        self._observer.end(is_complete=is_complete)

    def undisturbed(self) -> AbstractContextManager[None]:
        return self._observer.undisturbed()
