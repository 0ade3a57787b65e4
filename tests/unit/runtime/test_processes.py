"""Which launcher started the job, and that processes say to each other what they should."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distconv.errors import InputError
from distconv.runtime import processes
from distconv.runtime.processes import Launch, MpiProcesses, SingleProcess, StoreProcesses, connect, connect_to, launch
from tests.unit.threads import on_threads

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}
# What a batch script, or a shell of `salloc`, finds; and what `srun` adds for each task.
SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}
SRUN = {**SLURM_JOB, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}


SINGLE = Launch(means="single", rank=0, size=1)
STORE = Launch(means="store", rank=3, size=4)
MPI = Launch(means="mpi", rank=3, size=4)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, SINGLE),
        (TORCHRUN, STORE),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}, SINGLE),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, MPI),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, SINGLE),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, MPI),
        ({"MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_SIZE": "4"}, MPI),
        ({"PALS_RANKID": "3", "PALS_SIZE": "4"}, MPI),
        # torchrun inside of a Slurm job, and an MPI launcher inside of one.
        ({**SRUN, **TORCHRUN}, STORE),
        ({**SLURM_JOB, "PMI_RANK": "3", "PMI_SIZE": "4"}, MPI),
        (SLURM_JOB, SINGLE),
        ({**SLURM_JOB, "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}, SINGLE),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, SINGLE),
        ({**SRUN, "PMIX_RANK": "3"}, MPI),
        ({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}, MPI),
        ({**SRUN, "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}, STORE),
        # A rank alone starts no job of many: this is the only process, so it is the one that talks.
        ({"RANK": "3"}, SINGLE),
        ({"RANK": "3", "WORLD_SIZE": "4"}, SINGLE),
        ({"PMI_RANK": "3"}, SINGLE),
        ({"PMIX_RANK": "3"}, SINGLE),
    ],
)
def test_the_launcher_is_known_by_its_environment(environment, expected):
    assert launch(environment) == expected


@pytest.mark.parametrize("environment", [SRUN, {**SRUN, "MASTER_ADDR": "node1"}, {**SRUN, "MASTER_PORT": "29500"}])
def test_tasks_of_srun_that_cannot_find_each_other_are_refused_with_the_remedy(environment):
    with pytest.raises(
        InputError, match=r"srun started 4 processes that cannot find each other: .*--mpi=pmix.*torchrun"
    ):
        launch(environment)


def test_processes_find_each_other_by_the_means_of_the_launcher(monkeypatch):
    monkeypatch.setattr(processes, "StoreProcesses", lambda rank, size: ("store", rank, size))
    monkeypatch.setattr(processes, "MpiProcesses", lambda size: ("mpi", size))
    assert isinstance(connect(SINGLE), SingleProcess)
    assert connect(STORE) == ("store", 3, 4)
    assert connect(MPI) == ("mpi", 4)


def test_a_single_process_talks_to_itself():
    single = SingleProcess()
    assert (single.rank, single.size) == (0, 1)
    assert single.share({"a": 1}) == {"a": 1}
    assert single.collect({"a": 1}) == [{"a": 1}]
    single.raise_alarm()
    assert not single.alarmed()
    single.close()


class MemoryStore:
    """torch's key-value store: `get` waits for the key."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self.values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self.values, timeout=5), f"nobody sets {key}"
            return self.values[key]

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
            return int(self.values[key])

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(key in self.values for key in keys)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that `StoreProcesses` finds in place of torch's."""
    found = MemoryStore()
    module = ModuleType("torch.distributed.rendezvous")
    module.rendezvous = lambda url, rank, size, timeout: iter([(found, rank, size)])  # noqa: ARG005
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return found


@pytest.mark.usefixtures("store")
def test_processes_with_a_store_share_and_collect():
    def run(rank: int) -> list[Any]:
        found = StoreProcesses(rank, 3)
        said = [found.share({"plan": [1, None, "é"]} if rank == 0 else None)]
        said += [found.collect([rank, number]) for number in range(3)]
        said.append(found.share("done" if rank == 0 else "not heard"))
        found.close()
        return said

    expected = [{"plan": [1, None, "é"]}, *([[rank, number] for rank in range(3)] for number in range(3)), "done"]
    assert on_threads(3, run) == [expected] * 3


@pytest.mark.usefixtures("store")
def test_the_alarm_is_heard_without_waiting():
    one, other = StoreProcesses(0, 2), StoreProcesses(1, 2)
    assert not one.alarmed()
    other.raise_alarm()
    assert one.alarmed()
    assert other.alarmed()


@pytest.mark.usefixtures("store")
def test_the_process_that_may_host_the_store_leaves_last():
    left: list[int] = []

    def run(rank: int) -> None:
        found = StoreProcesses(rank, 3)
        time.sleep(0.02 * rank)
        found.close()
        left.append(rank)

    assert on_threads(3, run) == [None] * 3
    assert left[-1] == 0


@pytest.mark.usefixtures("store")
def test_a_restarted_job_does_not_see_what_was_said_before(monkeypatch):
    StoreProcesses(0, 2).raise_alarm()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not StoreProcesses(0, 2).alarmed()


def test_an_mpi4py_of_another_mpi_is_refused(monkeypatch):
    world = SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1, Dup=lambda: None)
    module = ModuleType("mpi4py")
    module.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(Dup=lambda: world))
    monkeypatch.setitem(sys.modules, "mpi4py", module)
    with pytest.raises(InputError, match="started 4 processes, but mpi4py sees 1: mpi4py belongs to another MPI"):
        MpiProcesses(4)
    assert (MpiProcesses(1).rank, MpiProcesses(1).size) == (0, 1)


def test_a_program_is_alone_unless_it_names_its_processes():
    assert isinstance(connect_to(None, TORCHRUN), SingleProcess)
    assert isinstance(connect_to("auto", {}), SingleProcess)
    assert isinstance(connect_to("torchrun", {}), SingleProcess)


@pytest.mark.parametrize(("which", "environment"), [("slurm", {}), ("torchrun", {"PMI_RANK": "0", "PMI_SIZE": "2"})])
def test_processes_that_a_program_names_wrongly_are_refused(which, environment):
    with pytest.raises(InputError, match=f"processes='{which}'"):
        connect_to(which, environment)
