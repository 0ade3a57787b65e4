"""Processes of `MPI.COMM_WORLD`.

Owns the messages between them. `mpi4py` is imported only here. Nothing waits inside of MPI: requests are tested again
and again, since a process that waits there hears neither signals nor that another one is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any

from distconv.errors import JobError, LauncherError, LostError
from distconv.runtime.clerk import FAREWELL_SECONDS
from distconv.runtime.processes import PATIENCE, left, packed, unpacked
from distconv.runtime.progress import Beat
from distconv.runtime.watched_processes import WatchedProcesses

_LOG = logging.getLogger("distconv")
_ALARM, _ABANDONED, _BEAT = 1, 2, 3
_SIZE_BYTES = 8
_REMEDY = "install it for the MPI whose mpirun you use, or name the library of that MPI: MPI4PY_LIBMPI=…/libmpi.so.40"


class MpiProcesses(WatchedProcesses):
    """Processes of MPI; `expected` is their number as an MPI launcher says it, if it does."""

    def __init__(self, expected: int | None = None, patience: float = PATIENCE) -> None:
        try:
            from mpi4py import MPI  # noqa: PLC0415 - importing it initialises MPI
        except (ImportError, RuntimeError) as error:
            reason = ": ".join(str(error).splitlines()[:2])
            raise LauncherError(f"mpi4py cannot be imported ({reason}): {_REMEDY}") from None
        self._mpi = MPI
        size = MPI.COMM_WORLD.Get_size()
        if expected not in (None, size):
            raise LauncherError(
                f"the MPI launcher started {expected} processes, but mpi4py sees {size}: mpi4py belongs to "
                f"another MPI than the launcher: {_REMEDY}"
            )
        self._world = MPI.COMM_WORLD.Dup()
        # Of its own, because a process that is interrupted leaves in the middle of something.
        self._leaving = self._world.Dup()
        self._requests: list[Any] = []
        self._unfinished: list[Any] = []
        # The number of exchanges at which the last alarm was raised: while one works, nobody goes on.
        self._alarm = -1
        self._abandoned: str | None = None
        self._beats: dict[int, Any] = {}
        threads = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
        if not threads:
            _LOG.warning("MPI was initialised for one thread only: no process is missed, however long it is silent")
        super().__init__(MPI.COMM_WORLD.Get_rank(), size, patience, thread=threads)
        self._clerk.begin_to_beat(self._beat)

    def end_if_stuck(self, tell: Callable[[str], None]) -> None:
        """MPI ends the others."""

        def end(sentence: str) -> None:
            self._clerk.wait_for_turn(self.rank)
            tell(sentence)
            self.abort()

        self._clerk.end_if_stuck(end)

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        self._number += 1
        data = packed(value) if self.rank == 0 else b""
        size = bytearray(len(data).to_bytes(_SIZE_BYTES, "little"))
        self._exchange(lambda: self._world.Ibcast(size, root=0))
        shared = bytearray(data or int.from_bytes(size, "little"))
        self._exchange(lambda: self._world.Ibcast(shared, root=0))
        return unpacked(shared)

    def collect(self, value: Any) -> list[Any]:
        """Every process's value."""
        self._number += 1
        data = packed(value)
        numbers = bytearray(_SIZE_BYTES * self.size)
        self._exchange(lambda: self._world.Iallgather(bytearray(len(data).to_bytes(_SIZE_BYTES, "little")), numbers))
        sizes = [
            int.from_bytes(numbers[start : start + _SIZE_BYTES], "little")
            for start in range(0, len(numbers), _SIZE_BYTES)
        ]
        ends = list(accumulate(sizes))
        everyone = bytearray(ends[-1])
        self._exchange(lambda: self._world.Iallgatherv(data, [everyone, sizes, None, self._mpi.BYTE]))
        return [unpacked(everyone[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def raise_alarm(self) -> None:
        """Send every other process a message that it looks for."""
        self._clerk.ask(self._send_alarm)

    def alarmed(self) -> bool:
        """Whether such a message has come."""
        self._clerk.check()
        return self._clerk.ask(self._is_alarmed)

    def close(self, patience: float | None = None) -> None:
        """Meet the others, take up what nobody read, so that its senders can finish.

        Communicators that one process has abandoned stay as they are: to free them takes all processes.
        """
        if patience is not None:
            self._clerk.leave()
        everybody = self._complete(self._leaving.Ibarrier, patience)
        # Nobody beats any more who comes to the second meeting.
        self._clerk.leave()
        everybody = everybody and self._complete(self._leaving.Ibarrier, FAREWELL_SECONDS)
        self._clerk.stop()
        if everybody:
            self._is_alarmed()
            self._take_up_beats()
            self._mpi.Request.Waitall([*self._requests, *self._beats.values()])
            self._leaving.Free()
            self._world.Free()

    def desert(self, reason: str) -> None:
        """End all processes: those that are lost could not take part in ending MPI."""
        self._clerk.leave()
        with suppress(LostError):
            self._say_that_it_leaves(reason)
        self._clerk.stop()
        self.abort()

    def abort(self) -> None:
        """End all processes of the MPI job."""
        self._world.Abort(1)

    def _say_that_it_leaves(self, reason: str) -> None:
        self._clerk.ask(self._send_alarm)
        self._clerk.ask(partial(self._send, left(self.rank, reason), _ABANDONED))

    def _exchange(self, begin: Callable[[], Any]) -> None:
        if not self._complete(begin):
            raise JobError(self._abandoned)

    def _complete(self, begin: Callable[[], Any], patience: float | None = None) -> bool:
        """Wait for a request without burning a core, and awake to signals; whether it was completed."""
        request = self._clerk.ask(begin)
        done = False

        def is_over() -> bool:
            nonlocal done
            done = done or bool(request.Test())
            return done or self._is_abandoned()

        try:
            self._clerk.wait(is_over, patience)
        finally:
            if not done:
                # MPI may still write into its buffers.
                self._unfinished.append(request)
        return done

    # What follows is called by the clerk alone.

    def _send_alarm(self) -> None:
        self._alarm = self._number
        self._send(self._number, _ALARM)

    def _is_alarmed(self) -> bool:
        while self._world.iprobe(tag=_ALARM):
            self._alarm = max(self._alarm, self._world.recv(tag=_ALARM))
        return self._alarm == self._number

    def _send(self, value: Any, tag: int) -> None:
        others = (rank for rank in range(self.size) if rank != self.rank)
        self._requests += [self._world.isend(value, dest=rank, tag=tag) for rank in others]

    def _is_abandoned(self) -> bool:
        if self._abandoned is None and self._world.iprobe(tag=_ABANDONED):
            self._abandoned = self._world.recv(tag=_ABANDONED)
        return self._abandoned is not None

    def _beat(self) -> None:
        """Send what has changed to those who watch, who are those that are watched; take up what has come."""
        self._take_up_beats()
        beat = self.progress.beat()
        if beat == self._published:
            return
        self._published = beat
        for rank in self._watch.ranks:
            if rank not in self._beats or self._beats[rank].Test():
                self._beats[rank] = self._world.isend(beat.to_json(), dest=rank, tag=_BEAT)

    def _take_up_beats(self) -> None:
        status = self._mpi.Status()
        while self._world.iprobe(tag=_BEAT, status=status):
            rank = status.Get_source()
            self._watch.hear(rank, Beat.from_json(self._world.recv(source=rank, tag=_BEAT)))

    def _broken(self, error: Exception) -> str:
        return f"MPI cannot reach all processes any more ({str(error).partition(chr(10))[0]}): one of them has ended"
