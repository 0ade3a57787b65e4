"""The processes of a job: which launcher started them, and the few things they say to each other.

Owns rank, size, sharing facts, collecting outcomes and the alarm that a failing process raises. `mpi4py` is imported
only under an MPI launcher, `torch.distributed` (its key-value store, no process group) only under `torchrun` and under
`srun` without MPI. Nothing here knows what the job does.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from distconv.errors import LauncherError

# A conversion may run for a day; a process that dies is the launcher's to notice (it ends the others).
_PATIENCE = timedelta(days=7)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1
# The number of processes and the rank, as Open MPI, MPICH and its descendants, MVAPICH and PALS say them.
_MPI_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("PALS_SIZE", "PALS_RANKID"),
)


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

    def abort(self) -> None:
        """Nobody to end."""


class StoreProcesses:
    """Processes that share torch's key-value store, as `torchrun` starts them."""

    def __init__(self, rank: int, size: int) -> None:
        from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415 - only where torchrun started the job

        self.rank = rank
        self.size = size
        self._store, _, _ = next(rendezvous("env://", rank, size, timeout=_PATIENCE))
        # A restarted job of an elastic agent must not see the keys of the attempt before it, nor a second job of one
        # program those of the first.
        attempt = f"distconv/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._prefix = f"{attempt}/{self._store.add(f'{attempt}/jobs/{rank}', 1)}"
        self._number = 0

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
        return bool(self._store.check([f"{self._prefix}/alarm"]))

    def close(self, patience: float | None = None) -> None:
        """Rank 0 may host the store, so it leaves last."""
        spoken, gone = f"{self._prefix}/spoken", f"{self._prefix}/gone"
        if self.rank == 0:
            self._store.set(spoken, b"1")
        _wait(lambda: bool(self._store.check([spoken])), patience)
        self._store.add(gone, 1)
        if self.rank == 0:
            _wait(lambda: self._store.add(gone, 0) >= self.size, patience)

    def abort(self) -> None:
        """The launcher ends the others when this process exits."""

    def _get(self, key: str) -> Any:
        # Not `get`, which waits inside of torch: a process that waits there does not hear that it is to end.
        _wait(lambda: bool(self._store.check([key])))
        return _unpacked(self._store.get(key))

    def _next(self) -> str:
        self._number += 1
        return f"{self._prefix}/{self._number}"


class MpiProcesses:
    """Processes of `MPI.COMM_WORLD`."""

    def __init__(self, expected: int | None = None) -> None:
        from mpi4py import MPI  # noqa: PLC0415 - importing it initialises MPI

        self._mpi = MPI
        self._world = MPI.COMM_WORLD.Dup()
        self.rank = self._world.Get_rank()
        self.size = self._world.Get_size()
        if expected not in (None, self.size):
            raise LauncherError(
                f"the MPI launcher started {expected} processes, but mpi4py sees {self.size}: mpi4py belongs to "
                "another MPI than the launcher; install mpi4py for the MPI whose mpirun you use"
            )
        self._alarm_requests: list[Any] = []
        self._alarmed = False
        # Of its own, because a process that is interrupted leaves in the middle of something.
        self._leaving = self._world.Dup()

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        self._meet(self._world)
        return _unpacked(self._world.bcast(_packed(value) if self.rank == 0 else None, root=0))

    def collect(self, value: Any) -> list[Any]:
        """Every process's value."""
        self._meet(self._world)
        return [_unpacked(packed) for packed in self._world.allgather(_packed(value))]

    def raise_alarm(self) -> None:
        """Send every other process a message that it looks for."""
        self._alarmed = True
        self._alarm_requests = [
            self._world.isend(None, dest=rank, tag=1) for rank in range(self.size) if rank != self.rank
        ]

    def alarmed(self) -> bool:
        """Whether such a message has come."""
        while self._world.iprobe(tag=1):
            self._world.recv(tag=1)
            self._alarmed = True
        return self._alarmed

    def close(self, patience: float | None = None) -> None:
        """Meet the others, take up alarms that nobody read, so that their senders can finish."""
        if self._meet(self._leaving, patience):
            self.alarmed()
            self._mpi.Request.Waitall(self._alarm_requests)
            self._leaving.Free()
            self._world.Free()

    def abort(self) -> None:
        """End all processes of the MPI job."""
        self._world.Abort(1)

    def _meet(self, group: Any, patience: float | None = None) -> bool:
        """Wait for the others without burning a core, and awake to signals; whether they came."""
        return _wait(group.Ibarrier().Test, patience)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process was started: how it finds the others (single, store or mpi), its rank, and their number."""

    means: str
    rank: int
    size: int


def launch(environment: Mapping[str, str]) -> Launch:
    """What the environment that a launcher set says.

    Raises:
        LauncherError: `srun` started several processes that cannot find each other.
    """
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        return _launch("store", environment["RANK"], environment["WORLD_SIZE"])
    for size_name, rank_name in _MPI_LAUNCHERS:
        if size_name in environment:
            return _launch("mpi", environment.get(rank_name, "0"), environment[size_name])
    # The tasks of an `srun` step; a batch script itself, or a shell of `salloc`, is one process.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    rank = environment.get("SLURM_PROCID", "0")
    if "PMIX_RANK" in environment:
        return _launch("mpi", environment["PMIX_RANK"], tasks)
    if tasks == "1" or ("MASTER_ADDR" in environment and "MASTER_PORT" in environment):
        return _launch("store", rank, tasks)
    raise LauncherError(
        f"srun started {tasks} processes that cannot find each other: start them with srun --mpi=pmix (or pmi2) and an "
        "mpi4py for that MPI, or set MASTER_ADDR and MASTER_PORT (launch/slurm_srun.sh shows how), or use torchrun"
    )


def connect(start: Launch) -> Processes:
    """Connect to the processes that the launcher started.

    Raises:
        LauncherError: mpi4py does not see the processes of the launcher.
    """
    if start.means == "single":
        return SingleProcess()
    return StoreProcesses(start.rank, start.size) if start.means == "store" else MpiProcesses(start.size)


def connect_to(which: str | None, environment: Mapping[str, str]) -> Processes:
    """Connect to the processes that a program names: `torchrun`, `mpi`, `auto` (as a launcher set the environment).

    Without a name, this process is alone, whatever started it.

    Raises:
        LauncherError: another name, or no such processes.
    """
    if which is None:
        return SingleProcess()
    if which == "mpi":
        return MpiProcesses()
    if which not in ("auto", "torchrun"):
        raise LauncherError(f"processes={which!r}: expected None, 'auto', 'torchrun' or 'mpi'")
    start = launch(environment)
    if which == "torchrun" and start.means == "mpi":
        raise LauncherError("processes='torchrun': RANK, WORLD_SIZE and MASTER_ADDR are not set; start with torchrun")
    return connect(start)


def _launch(means: str, rank: str, size: str) -> Launch:
    if int(size) == 1:
        return Launch(means="single", rank=0, size=1)
    return Launch(means=means, rank=int(rank), size=int(size))


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
