"""The processes of a job, and the few things they say to each other.

Owns what a job may ask of them: rank, size, sharing facts, collecting outcomes, the alarm that a failing process
raises, and how long the silence of one is borne. `store_processes` and `mpi_processes` are those of launchers. Nothing
here knows what the job does.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from distconv.runtime.progress import Progress

# Seconds, until the options of the job say otherwise.
PATIENCE = 600


class Processes(Protocol):
    """What a job needs of the processes it runs on; every method but the alarm is called by all of them.

    `world_rank` is what errors and reports call this process: its rank among all that were started, which is not `rank`
    where it has a job of its own beside the others. `progress` is that of this process, which the others watch.
    Whatever waits for others, or asks for an alarm, raises `LostError` where one of them is silent for too long, or the
    connection to them is broken.
    """

    rank: int
    world_rank: int
    size: int
    progress: Progress

    def be_patient(self, seconds: float) -> None:
        """Bear the silence of others for so many seconds, 0 for ever."""

    def end_if_stuck(self, tell: Callable[[str], None]) -> None:
        """End this process, after one has told, where it hangs itself and so takes no notice that others are lost.

        As on a file system on which all hang. `tell` is called with the sentence, from another thread.
        """

    def begin_to_move(self) -> None:
        """Count what is moved from now on, up to the next time that all share or collect something."""

    def moved_elsewhere(self) -> int:
        """Bytes that the others have moved since, as far as rank 0 has heard; called by rank 0, from any thread."""

    def share(self, value: Any) -> Any:
        """Rank 0's value (plain JSON data) on every process."""

    def collect(self, value: Any) -> list[Any]:
        """Every process's value (plain JSON data) in the order of ranks, on every process."""

    def raise_alarm(self) -> None:
        """Tell the others, without waiting for them, that this process has failed.

        The alarm is over when all have next shared or collected something, so that another job can follow.
        """

    def alarmed(self) -> bool:
        """Whether any process has raised the alarm since; cheap enough to ask twice a second."""

    def close(self, patience: float | None = None) -> None:
        """Leave the job together, after rank 0 has said what it has to say; called once, last.

        With `patience`, in seconds, some may never come: a launcher ends the others when one has left.
        """

    def abandon(self, reason: str) -> None:
        """Leave the job without the others, after a failure that they do not know of.

        Where they wait for this process, now or later, they get a `JobError` with the reason.
        """

    def has_to_tell(self) -> bool:
        """Whether this process, after a `LostError` or an interruption, is the one to tell: the lowest that lives."""

    def desert(self, reason: str) -> None:
        """Leave the job after a `LostError`, with all who can hear it; a launcher ends those who cannot."""

    def abort(self) -> None:
        """End all processes after a failure that could not be agreed on."""


class SingleProcess:
    """A job on one process."""

    rank = 0
    size = 1

    def __init__(self, *, world_rank: int = 0, progress: Progress | None = None) -> None:
        self.world_rank = world_rank
        self.progress = progress or Progress()

    def be_patient(self, seconds: float) -> None:
        """Nobody to wait for."""

    def end_if_stuck(self, tell: Callable[[str], None]) -> None:
        """Nobody would notice."""

    def begin_to_move(self) -> None:
        """Nobody to tell."""

    def moved_elsewhere(self) -> int:
        """Nothing."""
        return 0

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def collect(self, value: Any) -> list[Any]:
        """The one value."""
        return [value]

    def raise_alarm(self) -> None:
        """Nobody to tell."""

    def alarmed(self) -> bool:
        """Never."""
        return False

    def close(self, patience: float | None = None) -> None:
        """Nothing to leave."""

    def abandon(self, reason: str) -> None:
        """Nobody to leave."""

    def has_to_tell(self) -> bool:
        """Always."""
        return True

    def desert(self, reason: str) -> None:
        """Nobody to leave."""

    def abort(self) -> None:
        """Nobody to end."""


class AloneAmong(SingleProcess):
    """A job on one of several processes, which has the others neither wait nor stop; they watch its progress."""

    def __init__(self, processes: Processes) -> None:
        super().__init__(world_rank=processes.world_rank, progress=processes.progress)
        self._processes = processes

    def alarmed(self) -> bool:
        """Whether one of the others has failed in a way that ends more than its own job, or is lost."""
        return self._processes.alarmed()


def left(rank: int, reason: str) -> str:
    """The sentence about a process that has left."""
    return f"rank {rank} has left the job: {reason}"


def packed(value: Any) -> bytes:
    """A value, plain JSON data, for the way to another process."""
    return zlib.compress(json.dumps(value).encode(), 1)


def unpacked(data: bytes | bytearray) -> Any:
    """The value that was packed."""
    return json.loads(zlib.decompress(data))
