"""How the processes of a job were started, and the connection to them.

Owns what launchers (torchrun, those of MPI, srun) put into the environment. Starts no process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from distconv.errors import DistconvError, LauncherError, LostError
from distconv.runtime.lanes import cores_of
from distconv.runtime.mpi_processes import MpiProcesses
from distconv.runtime.processes import PATIENCE, Processes, SingleProcess
from distconv.runtime.store_processes import StoreProcesses

# The number of processes and the rank, as Open MPI, MPICH and its descendants, MVAPICH and PALS say them.
_MPI_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("PALS_SIZE", "PALS_RANKID"),
)
# The number of processes on this host, as torchrun, these, and Slurm say it.
_LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "PALS_LOCAL_SIZE",
    "SLURM_STEP_TASKS_PER_NODE",
)
_NUMBER = re.compile(r"[0-9]{1,9}")


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
        "mpi4py for that MPI, or set MASTER_ADDR and MASTER_PORT (launch/slurm.sh shows how), or use torchrun"
    )


def local_size(environment: Mapping[str, str]) -> int | None:
    """How many processes of the job the launcher started on this host, if it says so."""
    # Slurm says `4(x2),3`: those of two hosts, and of a third.
    said = (_NUMBER.match(environment.get(name, "")) for name in _LOCAL_SIZES)
    return next((max(int(each[0]), 1) for each in said if each), None)


def cores(environment: Mapping[str, str]) -> int:
    """How many cores this process can have, beside the others of its job on this host."""
    return cores_of(local_size(environment) or 1)


def connect(start: Launch, patience: float = PATIENCE) -> Processes:
    """Connect to the processes that the launcher started, and wait for them as long as patience, in seconds, lasts.

    Raises:
        LauncherError: mpi4py does not see the processes of the launcher.
        LostError: they cannot be reached.
    """
    if start.means == "single":
        return SingleProcess()
    if start.means == "store":
        return StoreProcesses(start.rank, start.size, patience)
    return MpiProcesses(start.size, patience)


def connect_to(which: str | None, environment: Mapping[str, str]) -> Processes:
    """Connect to the processes that a program names: `torchrun`, `mpi`, `auto` (as a launcher set the environment).

    Without a name, this process is alone, whatever started it; with one, it is alone if no launcher started others.

    Raises:
        LauncherError: another name, or no such processes.
    """
    if which is None:
        return SingleProcess()
    if which not in ("auto", "torchrun", "mpi"):
        raise LauncherError(f"processes={which!r}: expected None, 'auto', 'torchrun' or 'mpi'")
    if which == "mpi":
        return _of_mpi(environment)
    start = launch(environment)
    if which == "torchrun" and start.means == "mpi":
        raise LauncherError("processes='torchrun': RANK, WORLD_SIZE and MASTER_ADDR are not set; start with torchrun")
    return connect(start)


@contextmanager
def connected(which: str | None, environment: Mapping[str, str]) -> Iterator[Processes]:
    """The processes of `connect_to`. After an error of all of them they leave together; else this one leaves."""
    group = connect_to(which, environment)
    failure: DistconvError | None = None
    try:
        try:
            yield group
        except LostError:
            raise
        except DistconvError as error:
            failure = error
        group.close()
    except BaseException as error:
        # What cannot be said any more, since the connection is lost, the others notice themselves.
        with suppress(Exception):
            group.abandon(f"{type(error).__name__}: {error}")
        raise
    if failure is not None:
        raise failure


def _of_mpi(environment: Mapping[str, str]) -> Processes:
    """The processes of MPI, which must be as many as were started."""
    try:
        start = launch(environment)
    except LauncherError:
        # MPI may have a way for them to find each other that cannot be seen here.
        return MpiProcesses()
    if start.means == "mpi":
        return MpiProcesses(start.size)
    found = MpiProcesses()
    if start.means == "store" and found.size != start.size:
        raise LauncherError(
            f"processes='mpi': {start.size} processes were started, but MPI sees {found.size}; start with mpirun, or "
            "name them processes='torchrun'"
        )
    return found


def _launch(means: str, rank: str, size: str) -> Launch:
    if not (_NUMBER.fullmatch(rank) and _NUMBER.fullmatch(size)):
        raise LauncherError(f"the launcher says rank {rank:.20} of {size:.20}: expected two numbers")
    if int(size) == 1:
        return Launch(means="single", rank=0, size=1)
    return Launch(means=means, rank=int(rank), size=int(size))
