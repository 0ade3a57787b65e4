"""A process that stands still is given up: the job ends, says who and where, and the target stays untouched.

One is stopped by a signal, or hangs in a system call, as on a file system whose server is gone. It must be all the same
whether it is the first one or another, and who keeps the store.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.checkpoints import load_case, write_source
from tests.processes.jobs import Job, mpirun, run, srun, torchrun
from tests.processes.worlds import World, check_message

CASE = "qwen2vl__tp2_pp2"
SHARD = "model-00004-of-00005.safetensors"
# Seconds of patience; in which a job must have spoken then; and after which torchrun kills what does not end.
PATIENCE, SOON, KILLED = 5, 30, 30
# Seconds in which what a process does has become known to the others.
KNOWN = 1
LAUNCHERS = pytest.mark.parametrize("launcher", [torchrun, mpirun])


@pytest.fixture
def world(tmp_path):
    write_source(tmp_path / "hf", load_case(CASE))
    return World(tmp_path, f"hf/{SHARD}", "mm", "layout.tp=2", f"patience={PATIENCE}")


def check_given_up(outcome, rank, *fragments):
    # mpirun kills the stopped process when another one aborts, and at times adds that signal to the status.
    assert outcome.status in (1, 1 | signal.SIGKILL), outcome.err
    check_message(outcome, f"distconv: rank {rank} on ", f"no progress in {PATIENCE} s", *fragments)


def stopped_while_writing(launcher, world, rank, meanwhile=lambda: None):
    """How a job ends, soon, when a rank is stopped while rank 1 is held; `meanwhile` is done until then."""
    world.hold(1)
    with Job(launcher(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        time.sleep(KNOWN)
        job.send(signal.SIGSTOP, rank)
        stopped = time.monotonic()
        outcome = job.end(meanwhile)
    assert time.monotonic() - stopped < PATIENCE + SOON + KILLED, outcome.err
    return outcome


@pytest.mark.parametrize("launcher", [torchrun, mpirun, srun])
def test_the_first_process_is_stopped(launcher, world):
    outcome = stopped_while_writing(launcher, world, 0, world.release)
    check_given_up(outcome, 0)
    assert world.results() == []
    # Nobody but the first process removes what is begun.
    assert all(str(path) in outcome.err for path in world.staging())


@LAUNCHERS
def test_another_process_is_stopped(launcher, world):
    outcome = stopped_while_writing(launcher, world, 1)
    check_given_up(outcome, 1, "last seen writing", f"hf/{SHARD}")
    world.check_unfinished(outcome)


@pytest.mark.parametrize(
    ("launcher", "rank", "doing"), [(torchrun, 0, "reading the headers"), (mpirun, 1, "last seen writing")]
)
def test_a_process_hangs_in_a_system_call(launcher, rank, doing, world):
    """It lives and hears, and its threads run, but its work stands still."""
    world.hold(rank)
    with Job(launcher(2, *world.arguments(), own=world.own), world.directory) as job:
        outcome = job.end()

    check_given_up(outcome, rank, doing, f"hf/{SHARD}")
    world.check_unfinished(outcome)


@LAUNCHERS
def test_a_process_that_is_slow_but_moves_is_waited_for(launcher, world):
    world.own["1"]["slow"] = 0.08

    outcome = run(launcher(2, *world.arguments("io.threads=1"), own=world.own), world.directory)

    assert outcome.status == 0, outcome.err
    assert "wrote " in outcome.out
    assert outcome.seconds > 2 * PATIENCE


@LAUNCHERS
def test_all_processes_hang_in_a_system_call(launcher, world):
    """As on a file system that all of them read from: each has threads that never return."""
    world.own["0"]["slow"] = 0.1
    world.hold(1)
    with Job(launcher(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        os.mkfifo(world.views[0].with_name("held"))
        outcome = job.end()

    assert outcome.status == 1, outcome.err
    # Either sees the other, and may be the first to tell.
    assert f"no progress in {PATIENCE} s; it was last seen writing: " in outcome.err
    assert "distconv: rank " in outcome.err
    assert not outcome.shows_its_inside
    assert world.results() == []


@LAUNCHERS
def test_all_processes_hang_where_they_cannot_even_notice(launcher, world):
    """As in the fsync of files on a disk of all of them: nobody comes to wait for the others."""
    for own in world.own.values():
        own |= {"slow": 1000, "calls": "fsync"}
    # With which the first process begins the work.
    world.own["0"]["quick"] = 2

    outcome = run(launcher(2, *world.arguments(), own=world.own), world.directory)

    assert outcome.status == 1, outcome.err
    check_message(outcome, f"no progress in {PATIENCE} s; it was last seen writing: ", "model_optim_rng.pt")
    assert world.results() == []


def test_the_first_process_is_killed_with_the_store(world):
    world.hold(1)
    with Job(srun(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        job.send(signal.SIGKILL, 0)
        outcome = job.end(world.release)

    assert outcome.status == 1
    check_message(outcome, "distconv: the connection to rank 0 is broken")
    assert world.results() == []
