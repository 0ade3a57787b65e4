"""One process fails in the middle: all end soon, the cause is told once, and nothing looks finished.

The failures are real ones: see worlds.py.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.checkpoints import load_case, write_source
from tests.errors.damage import config, sparse
from tests.processes.jobs import Job, mpirun, open_mpirun, run, single, torchrun
from tests.processes.worlds import OVER, SHARE, SOON, World, check_message, killed_while_the_other_waits

CASE = "qwen2vl__tp2_pp2"
SHARD = "model-00004-of-00005.safetensors"
LAUNCHERS = pytest.mark.parametrize("launcher", [torchrun, mpirun, open_mpirun])


@pytest.fixture
def world(tmp_path):
    write_source(tmp_path / "hf", load_case(CASE))
    return World(tmp_path, f"hf/{SHARD}", "mm", "layout.tp=2")


@LAUNCHERS
def test_a_shard_cannot_be_opened(launcher, world):
    world.views[1].unlink()

    outcome = run(launcher(2, *world.arguments(), own=world.own), world.directory)

    assert outcome.status == 1
    assert outcome.seconds < OVER
    check_message(outcome, "distconv: rank 1 on ", f"hf/{SHARD}", "No such file or directory")
    world.check_unfinished(outcome)


@LAUNCHERS
def test_a_shard_is_cut_off_meanwhile(launcher, world):
    whole = world.views[1].stat().st_size
    os.truncate(world.views[1], 1000)

    outcome = run(launcher(2, *world.arguments(), own=world.own), world.directory)

    assert outcome.status == 1
    assert outcome.seconds < OVER
    check_message(outcome, "distconv: rank 1 on ", f"hf/{SHARD}", str(whole), "now 1000")
    world.check_unfinished(outcome)


@pytest.mark.parametrize(("launcher", "rank"), [(torchrun, 0), (mpirun, 1)])
def test_a_file_cannot_be_written(launcher, rank, world):
    """A limit on the size of files stands for a full disk. MPI itself needs files of some MB; those written have 96."""
    case, rows = load_case(CASE), 10**6
    config("vocab_size", rows)(case)
    write_source(world.directory / "large", case)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        sparse(f"large/{case['source_tensors'][name][2]}", name, rows)(world.directory)
    own = {str(rank): {"limits": {"RLIMIT_FSIZE": 64 * 1024**2}}}

    outcome = run(launcher(2, *world.arguments("io.fsync=false", source="large"), own=own), world.directory)

    assert outcome.status == 1
    assert outcome.seconds < OVER
    check_message(outcome, f"distconv: rank {rank} on ", f"mp_rank_{rank:02d}/model_optim_rng.pt", "File too large")
    world.check_unfinished(outcome)


def test_the_cause_is_told_however_long_cleaning_up_takes(world):
    """Torchrun ends whoever is left when one process has ended."""
    world.views[1].unlink()
    stages = ",".join(["6", *["0"] * 1499])

    command = torchrun(2, *world.arguments(f"layout.stages.text=[{stages}]", "io.fsync=false"), own=world.own)
    outcome = run(command, world.directory)

    assert outcome.status == 1
    check_message(outcome, "distconv: rank 1 on ", f"hf/{SHARD}", "No such file or directory")
    world.check_unfinished(outcome)


@LAUNCHERS
@pytest.mark.parametrize(
    ("option", "message"),
    [
        pytest.param("layot.tp=2", "unknown option layot.tp", id="option"),
        pytest.param("layout.stages.text=[2,3]", "adds up to 5 layers", id="layout"),
    ],
)
def test_wrong_input_is_told_once(launcher, option, message, world):
    """The first process comes late: the others know as much, and must not end the job before it has spoken."""
    own = {"0": {"directory": str(world.views[0].parent), "delay": 2}}

    outcome = run(launcher(2, *world.arguments(option), own=own), world.directory)

    # torchrun ends with 1 whatever its processes end with.
    assert outcome.status == (1 if launcher is torchrun else 2)
    check_message(outcome, message)
    assert outcome.out == ""
    world.check_unfinished(outcome)


@LAUNCHERS
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_is_killed_while_the_other_waits(launcher, victim, world):
    outcome = killed_while_the_other_waits(launcher, victim, world)

    assert outcome.status != 0
    assert not outcome.shows_its_inside
    assert world.results() == []
    # Only the first process can clean up, and mpirun leaves nobody the time for it.
    if victim == 1 and launcher is torchrun:
        world.check_unfinished(outcome)


def test_a_target_has_one_job_at_a_time_and_what_a_killed_one_left_is_named_and_does_no_harm(world):
    world.hold(1)
    with Job(mpirun(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        second = run(single(*world.arguments("overwrite=true"), own=world.own), world.directory)
        assert second.status == 2
        check_message(second, f"target={world.target}: another job is at work there: process {job.rank(0)} on ")
        job.send(signal.SIGKILL, 0)
        job.end(world.release)
    (left,) = world.staging()

    outcome = run(single(*world.arguments(), own=world.own), world.directory)

    assert outcome.status == 0, outcome.err
    assert not left.exists()
    assert sorted(path.name for path in world.results()) == ["latest_checkpointed_iteration.txt", "release"]


@pytest.mark.parametrize(
    ("launcher", "number", "after"),
    [
        (torchrun, signal.SIGINT, 0),
        (torchrun, signal.SIGTERM, SHARE),
        (mpirun, signal.SIGTERM, 0),
        (mpirun, signal.SIGINT, SHARE),
    ],
)
def test_the_launcher_is_asked_to_end(launcher, number, after, world):
    """Ctrl-C, or the end of the time that a batch job has, at once or when the first process waits for the other."""
    world.hold(1)

    with Job(launcher(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        time.sleep(after)
        job.send(number)
        asked = time.monotonic()
        outcome = job.end(world.release)

    assert time.monotonic() - asked < SOON, outcome.err
    assert outcome.status != 0
    check_message(outcome, "interrupted")
    world.check_unfinished(outcome)


def test_open_mpi_leaves_its_processes_half_a_second_and_the_same_command_continues(world):
    """It asks them to end, kills them, and drops what they say: nobody knows when the one that waits may go on."""
    world.hold_intact(1)
    command = open_mpirun(2, *world.arguments(), own=world.own)
    with Job(command, world.directory) as job:
        job.until(world.staging, "a staging directory")
        job.send(signal.SIGTERM)
        outcome = job.end()
    assert outcome.status != 0
    assert world.results() == []
    world.views[1].with_name("held").unlink()

    outcome = run(command, world.directory)

    assert outcome.status == 0, outcome.err
    assert world.staging() == []


@pytest.mark.parametrize(
    ("environment", "fragments"),
    [
        pytest.param(
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            ["the MPI launcher started 2 processes, but mpi4py sees 1", "mpi4py"],
            id="the MPI of mpi4py is not the launcher's",
        ),
        pytest.param(
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
            ["srun started 2 processes", "MASTER_ADDR"],
            id="the tasks of srun know nothing of each other",
        ),
    ],
)
def test_processes_that_cannot_find_each_other(environment, fragments, world):
    """Each would believe that it is alone, and write everything."""
    outcome = run(single(*world.arguments(), own=world.own), world.directory, environment)

    assert outcome.status == 2
    check_message(outcome, *fragments)
    world.check_unfinished(outcome)


@LAUNCHERS
def test_a_process_is_asked_to_end_before_it_knows_the_others(launcher, tmp_path):
    """It waits for a model definition here; the others end, too, though nothing connects them yet."""
    (tmp_path / "models" / "model").mkdir(parents=True)
    (tmp_path / "models" / "model" / "mine.yaml").write_text("model_types: [mine]\n")
    world = World(tmp_path, "models/model/mine.yaml", "mm")
    for rank in range(2):
        world.hold_intact(rank)
    command = launcher(2, f"--config-dir={tmp_path / 'models'}", "+model=mine", *world.arguments(), own=world.own)

    with Job(command, tmp_path) as job:
        job.until(lambda: all(view.with_name("waits").exists() for view in world.views), "both processes")
        job.send(signal.SIGTERM, 0)
        sent = time.monotonic()
        outcome = job.end()

    assert time.monotonic() - sent < SOON
    check_message(outcome, "distconv: interrupted")
    assert outcome.status != 0
