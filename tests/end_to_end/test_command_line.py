"""Several jobs of one command line, and flags anywhere in it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.checkpoints import describe_result, load_case, overrides, write_source

CASE = load_case("qwen2vl__tp2_pp1")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Two checkpoints, and an empty directory to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return [write_source(tmp_path / name, CASE) for name in ("one", "two")]


def test_several_jobs_leave_their_results_and_nothing_else(sources, tmp_path, distconv):
    paths = ",".join(map(str, sources))
    outcome = distconv("--multirun", f"source={paths}", "target=${source}-mm", *overrides(CASE))
    assert outcome.status == 0, outcome.err
    for source in sources:
        assert describe_result(source.with_name(f"{source.name}-mm")) == CASE["files"]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "one-mm", "two", "two-mm", "work"}
    assert list((tmp_path / "work").iterdir()) == []


def test_a_job_that_fails_does_not_keep_the_next_one_from_running(sources, tmp_path, distconv):
    (sources[0] / "config.json").unlink()
    paths = ",".join(map(str, sources))
    outcome = distconv(f"source={paths}", "target=${source}-mm", *overrides(CASE), "--multirun")
    assert outcome.status == 2
    assert outcome.err.count("distconv: ") == 1
    assert "one/config.json" in outcome.err
    assert not (tmp_path / "one-mm").exists()
    assert describe_result(tmp_path / "two-mm") == CASE["files"]


def test_a_reader_of_what_hydra_prints_that_has_left_is_no_failure(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        job = subprocess.run(
            [sys.executable, "-m", "distconv", "--cfg", "job"], cwd=tmp_path, stdout=stream, stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (job.returncode, job.stderr) == (0, "")
