"""The processes of a job, and the few things they say to each other.

Owns rank, size, sharing facts, collecting outcomes and the alarm that a failing process raises. `mpi4py` is imported
only for processes of MPI, `torch.distributed` (its key-value store, no process group) only for those of a store.
Nothing here knows what the job does.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from distconv.errors import JobError, LauncherError

# A conversion may run for a day; a process that dies is the launcher's to notice (it ends the others).
_PATIENCE = timedelta(days=7)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1
_ALARM, _ABANDONED = 1, 2


class Processes(Protocol):
    """What a job needs of the processes it runs on; every method but the alarm is called by all of them."""

    rank: int
    size: int

    def share(self, value: Any) -> Any:
        """Rank 0's value (plain JSON data) on every process."""

    def collect(self, value: Any) -> list[Any]:
        """Every process's value (plain JSON data) in the order of ranks, on every process."""

    def raise_alarm(self) -> None:
        """Tell the others, without waiting for them, that this process has failed."""

    def alarmed(self) -> bool:
        """Whether any process has raised the alarm; cheap enough to ask twice a second."""

    def close(self, patience: float | None = None) -> None:
        """Leave the job together, after rank 0 has said what it has to say; called once, last.

        With `patience`, in seconds, some may never come: a launcher ends the others when one has left.
        """

    def abandon(self, reason: str) -> None:
        """Leave the job without the others, after a failure that they do not know of.

        Where they wait for this process, now or later, they get a `JobError` with the reason.
        """

    def abort(self) -> None:
        """End all processes after a failure that could not be agreed on."""


class SingleProcess:
    """A job on one process."""

    rank = 0
    size = 1

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

    def abort(self) -> None:
        """Nobody to end."""


class StoreProcesses:
    """Processes that share torch's key-value store, as `torchrun` starts them."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._number = 0
        _wait(self._connect)

    def _connect(self) -> bool:
        """Connect to the store; whether rank 0 is there.

        Raises:
            LauncherError: the environment lacks the address of the store.
        """
        from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415 - only where torchrun started the job

        try:
            self._store, _, _ = next(rendezvous("env://", self.rank, self.size, timeout=_PATIENCE))
            # A restarted job of an elastic agent must not see the keys of the attempt before it, nor a second job of
            # one program those of the first.
            attempt = f"distconv/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
            self._prefix = f"{attempt}/{self._store.add(f'{attempt}/jobs/{self.rank}', 1)}"
            here = f"{self._prefix}/here"
            if self.rank == 0:
                self._store.set(here, b"1")
            return _wait(lambda: self._is_set(here))
        except ValueError as error:
            raise LauncherError(f"the processes cannot find each other: {error}") from None
        except RuntimeError:
            # A store that rank 0 hosted for the job before was still there, and has gone with it.
            if self.rank == 0:
                raise
            return False

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        key = self._next()
        if self.rank == 0:
            self._store.set(key, _packed(value))
        return self._get(key)

    def collect(self, value: Any) -> list[Any]:
        """Every process's value."""
        key = self._next()
        self._store.set(f"{key}/{self.rank}", _packed(value))
        everyone = None
        if self.rank == 0:
            everyone = [self._get(f"{key}/{rank}") for rank in range(self.size)]
        return list(self.share(everyone))

    def raise_alarm(self) -> None:
        """Set a key that the others look for."""
        self._store.set(f"{self._prefix}/alarm", b"1")

    def alarmed(self) -> bool:
        """Whether the key is set."""
        return self._is_set(f"{self._prefix}/alarm")

    def close(self, patience: float | None = None) -> None:
        """Rank 0 may host the store, so it leaves last."""
        spoken = f"{self._prefix}/spoken"
        if self.rank == 0:
            self._store.set(spoken, b"1")
        _wait(lambda: self._is_set(spoken), patience)
        self._count_gone(1)
        if self.rank == 0:
            _wait(lambda: self._count_gone(0) >= self.size, patience)

    def abandon(self, reason: str) -> None:
        """Set a key that the others look for while they wait, and be gone."""
        self._store.set(f"{self._prefix}/abandoned", _packed(_left(self.rank, reason)))
        self.raise_alarm()
        self._store.set(f"{self._prefix}/spoken", b"1")
        self._count_gone(1)

    def abort(self) -> None:
        """The launcher ends the others when this process exits."""

    def _get(self, key: str) -> Any:
        # Not `get`, which waits inside of torch: a process that waits there does not hear that it is to end.
        abandoned = f"{self._prefix}/abandoned"
        _wait(lambda: self._is_set(key) or self._is_set(abandoned))
        if not self._is_set(key):
            raise JobError(_unpacked(self._store.get(abandoned)))
        return _unpacked(self._store.get(key))

    def _is_set(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _count_gone(self, more: int) -> int:
        return int(self._store.add(f"{self._prefix}/gone", more))

    def _next(self) -> str:
        self._number += 1
        return f"{self._prefix}/{self._number}"


class MpiProcesses:
    """Processes of `MPI.COMM_WORLD`; `expected` is their number as an MPI launcher says it, if it does."""

    def __init__(self, expected: int | None = None) -> None:
        try:
            from mpi4py import MPI  # noqa: PLC0415 - importing it initialises MPI
        except (ImportError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise LauncherError(
                f"mpi4py cannot be imported ({reason}): install it for the MPI whose mpirun you use"
            ) from None
        self._mpi = MPI
        self.rank = MPI.COMM_WORLD.Get_rank()
        self.size = MPI.COMM_WORLD.Get_size()
        if expected not in (None, self.size):
            raise LauncherError(
                f"the MPI launcher started {expected} processes, but mpi4py sees {self.size}: mpi4py belongs to "
                "another MPI than the launcher; install mpi4py for the MPI whose mpirun you use"
            )
        self._world = MPI.COMM_WORLD.Dup()
        self._requests: list[Any] = []
        self._alarmed = False
        self._abandoned: str | None = None
        # Of its own, because a process that is interrupted leaves in the middle of something.
        self._leaving = self._world.Dup()

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        self._come_together()
        return _unpacked(self._world.bcast(_packed(value) if self.rank == 0 else None, root=0))

    def collect(self, value: Any) -> list[Any]:
        """Every process's value."""
        self._come_together()
        return [_unpacked(packed) for packed in self._world.allgather(_packed(value))]

    def raise_alarm(self) -> None:
        """Send every other process a message that it looks for."""
        self._alarmed = True
        self._send(None, _ALARM)

    def alarmed(self) -> bool:
        """Whether such a message has come."""
        while self._world.iprobe(tag=_ALARM):
            self._world.recv(tag=_ALARM)
            self._alarmed = True
        return self._alarmed

    def close(self, patience: float | None = None) -> None:
        """Meet the others, take up alarms that nobody read, so that their senders can finish.

        Communicators that one process has abandoned stay as they are: to free them takes all processes.
        """
        if self._meet(self._leaving, patience):
            self.alarmed()
            self._mpi.Request.Waitall(self._requests)
            self._leaving.Free()
            self._world.Free()

    def abandon(self, reason: str) -> None:
        """Send every other process a message that it looks for while it waits."""
        self.raise_alarm()
        self._send(_left(self.rank, reason), _ABANDONED)

    def abort(self) -> None:
        """End all processes of the MPI job."""
        self._world.Abort(1)

    def _send(self, value: Any, tag: int) -> None:
        others = (rank for rank in range(self.size) if rank != self.rank)
        self._requests += [self._world.isend(value, dest=rank, tag=tag) for rank in others]

    def _come_together(self) -> None:
        if not self._meet(self._world):
            raise JobError(self._abandoned)

    def _meet(self, group: Any, patience: float | None = None) -> bool:
        """Wait for the others without burning a core, and awake to signals; whether all of them came."""
        request = group.Ibarrier()
        return _wait(lambda: request.Test() or self._is_abandoned(), patience) and bool(request.Test())

    def _is_abandoned(self) -> bool:
        if self._abandoned is None and self._world.iprobe(tag=_ABANDONED):
            self._abandoned = self._world.recv(tag=_ABANDONED)
        return self._abandoned is not None


def _left(rank: int, reason: str) -> str:
    return f"rank {rank} has left the job: {reason}"


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value).encode(), 1)


def _unpacked(packed: bytes) -> Any:
    return json.loads(zlib.decompress(packed))


def _wait(condition: Callable[[], bool], patience: float | None = None) -> bool:
    """Wait until a condition holds, or for so many seconds; whether it holds."""
    end = None if patience is None else time.monotonic() + patience
    pause = _SHORTEST_PAUSE
    while not condition():
        if end is not None and time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True
