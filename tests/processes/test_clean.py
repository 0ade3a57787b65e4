"""`action=clean` removes what killed jobs left, and never what a job uses that is running."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.checkpoints import load_case, write_source
from tests.processes.jobs import Job, mpirun, run, single
from tests.processes.worlds import World


@pytest.fixture
def world(tmp_path) -> World:
    write_source(tmp_path / "hf", load_case("qwen2vl__tp2_pp2"))
    return World(tmp_path, "hf/model-00004-of-00005.safetensors", "mm", "layout.tp=2")


def listed(text: str, word: str) -> list[Path]:
    """The paths in the lines that begin with a word."""
    return [Path(line.split()[1]) for line in text.splitlines() if line.startswith(word)]


def test_a_running_job_keeps_what_it_uses_and_a_killed_one_nothing(world):
    world.hold(1)
    with Job(mpirun(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        (used,) = world.staging()
        meanwhile = run(single("action=clean", f"target={world.target}", own=world.own), world.directory)
        assert meanwhile.status == 0, meanwhile.err
        assert listed(meanwhile.out, "running") == [used]
        assert listed(meanwhile.out, "removed") == []
        assert world.staging() == [used]
        job.send(signal.SIGKILL, 0)
        job.end(world.release)

    report = world.directory / "report.json"
    cleaned = run(single("action=clean", f"target={world.target}", f"report={report}"), world.directory)

    assert cleaned.status == 0, cleaned.err
    assert listed(cleaned.out, "removed") == [used]
    assert world.staging() == []
    assert f'"path": "{used}"' in report.read_text()
    assert list(world.target.iterdir()) == []
    again = run(single("action=clean", f"target={world.target}"), world.directory)
    assert again.out == f"nothing is left of killed jobs in or beside {world.target}\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "target is missing"),
        (["target=nowhere/mm"], "target=nowhere/mm: no such directory, and no job has left anything beside it"),
        (["target=mm", "report=mm/report.json"], "report=mm/report.json: is inside target=mm"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(tmp_path, options, says):
    (tmp_path / "mm").mkdir()
    outcome = run(single("action=clean", *options), tmp_path)
    assert outcome.status == 2
    assert says in outcome.err
    assert not outcome.shows_its_inside
