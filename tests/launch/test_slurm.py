"""launch/slurm.sh on a real Slurm of two nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.checkpoints import hashes, load_case, overrides, write_source
from tests.launch.slurm import two_nodes
from tests.processes import surroundings
from tests.processes.jobs import run, single

SCRIPT = str(Path(__file__).parents[2] / "launch" / "slurm.sh")
# On each of the nodes: a process that starts takes seconds.
ONE = "--ntasks-per-node=1"
SHARD = "model-00004-of-00005.safetensors"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def words(tmp_path):
    """A conversion; its result of one process is in the directory `one`."""
    case = load_case("qwen2vl__tp2_pp2")
    made = [*overrides(case), f"source={write_source(tmp_path / 'hf', case)}"]
    outcome = run(single(*made, "target=one"), tmp_path)
    assert outcome.status == 0, outcome.err
    return made


# With pmi2 the processes find each other through the MPICH of the environment.
@pytest.mark.parametrize("start", ["srun", "torchrun", "pmi2"])
def test_a_job_on_two_nodes(start, slurm, words, tmp_path):
    with slurm.submit(tmp_path, SCRIPT, *words, "target=t wo", START=start) as job:
        outcome = job.end()

    log = (tmp_path / "log").read_text()
    assert outcome.status == 0, log
    assert "on 4 processes" in log
    assert hashes(tmp_path / "t wo") == hashes(tmp_path / "one")


def test_a_job_that_fails_ends_everywhere_and_is_not_repeated(slurm, words, tmp_path):
    with slurm.submit(tmp_path, ONE, SCRIPT, *words, "target=two", "layout.stages.text=[9,9]") as job:
        outcome = job.end()

    log = (tmp_path / "log").read_text()
    # Not always 2: srun ends those that have not yet ended themselves.
    assert outcome.status != 0, log
    assert log.count("distconv: ") == 1
    assert slurm.field(tmp_path, "Restarts") == "0"


@pytest.mark.parametrize("start", ["srun", "torchrun"])
def test_a_job_whose_time_is_over_is_continued(start, slurm, words, tmp_path):
    """Slurm sends the signal of the header by itself, but looks at the time twice a minute only."""
    held = tmp_path / "held"
    held.mkdir()
    (tmp_path / "hf" / SHARD).rename(held / "shard")
    (tmp_path / "hf" / SHARD).symlink_to(held / "shard")
    os.mkfifo(held / "held")
    modules = str(Path(surroundings.__file__).parent / "held")
    with slurm.submit(tmp_path, ONE, SCRIPT, *words, "target=two", START=start, PYTHONPATH=modules) as job:
        job.until((held / "waits").exists, "a process that waits")
        number = slurm.field(tmp_path, "JobId")
        slurm.run("scancel", "--signal=USR1", "--batch", number)
        job.until(lambda: slurm.field(tmp_path, "Restarts") == "1", "another try")
        job.until(lambda: slurm.field(tmp_path, "JobState") == "PENDING", "a job in the queue")
        assert "distconv: interrupted" in (tmp_path / "log").read_text()
        assert not (tmp_path / "two" / "release").exists()
        (held / "held").unlink()
        # It would wait two minutes; within the second in which it was killed nodes take it for the one that was.
        assert slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now+3").status == 0
        outcome = job.end()

    assert outcome.status == 0, (tmp_path / "log").read_text()
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
