"""Which launcher started the job, and by what means its processes are connected."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distconv.errors import InputError
from distconv.runtime import launch as module
from distconv.runtime.launch import Launch, connect, connect_to, launch, local_size
from distconv.runtime.processes import SingleProcess

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


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM_JOB, None),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"MPI_LOCALNRANKS": "16"}, 16),
        ({"MV2_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
        ({"PALS_LOCAL_SIZE": "1"}, 1),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "8(x4),3"}, 8),
        # torchrun inside of a step with a task for each node.
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "many"}, None),
        ({"LOCAL_WORLD_SIZE": "0"}, 1),
    ],
)
def test_the_launcher_says_how_many_processes_are_on_a_node(environment, expected):
    assert local_size(environment) == expected


@pytest.mark.parametrize("environment", [SRUN, {**SRUN, "MASTER_ADDR": "node1"}, {**SRUN, "MASTER_PORT": "29500"}])
def test_tasks_of_srun_that_cannot_find_each_other_are_refused_with_the_remedy(environment):
    with pytest.raises(
        InputError, match=r"srun started 4 processes that cannot find each other: .*--mpi=pmix.*torchrun"
    ):
        launch(environment)


def test_processes_find_each_other_by_the_means_of_the_launcher(monkeypatch):
    monkeypatch.setattr(module, "StoreProcesses", lambda rank, size, patience: ("store", rank, size, patience))
    monkeypatch.setattr(module, "MpiProcesses", lambda size, patience=600: ("mpi", size, patience))
    assert isinstance(connect(SINGLE), SingleProcess)
    assert connect(STORE, 60) == ("store", 3, 4, 60)
    assert connect(MPI, 60) == ("mpi", 4, 60)


def test_a_program_is_alone_unless_it_names_its_processes():
    assert isinstance(connect_to(None, TORCHRUN), SingleProcess)
    assert isinstance(connect_to("auto", {}), SingleProcess)
    assert isinstance(connect_to("torchrun", {}), SingleProcess)


@pytest.mark.parametrize(("which", "environment"), [("slurm", {}), ("torchrun", {"PMI_RANK": "0", "PMI_SIZE": "2"})])
def test_processes_that_a_program_names_wrongly_are_refused(which, environment):
    with pytest.raises(InputError, match=f"processes='{which}'"):
        connect_to(which, environment)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, 2),
        # As programs set it for torch, below mpirun.
        (TORCHRUN, None),
        # Only MPI itself can tell.
        (SRUN, None),
    ],
)
def test_the_number_of_processes_of_mpi_is_checked_where_its_launcher_says_it(monkeypatch, environment, expected):
    found = SimpleNamespace(size=4, expected=None)
    monkeypatch.setattr(module, "MpiProcesses", lambda expected=None: vars(found).update(expected=expected) or found)
    assert connect_to("mpi", environment) is found
    assert found.expected == expected


def test_mpi_that_does_not_see_the_processes_of_torchrun_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MpiProcesses", lambda: SimpleNamespace(size=1))
    with pytest.raises(InputError, match=r"^processes='mpi': 4 processes were started, but MPI sees 1; start with mpi"):
        connect_to("mpi", TORCHRUN)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"MPI_LOCALNRANKS": "3"}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 4),
        # torchrun in a step of a task for each node.
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "many", "MPI_LOCALNRANKS": "0"}, 1),
    ],
)
def test_how_many_processes_a_host_has(environment, expected):
    assert local_size(environment) == expected
