"""Several jobs of one command line, and flags anywhere in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from distconv.cli.config import help_text
from distconv.formats import registry
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


@pytest.mark.parametrize(
    "name",
    [
        "hf/模型", "é # & ~user", "a,b", "lr=1e-4,bs=8", "{name}", "[x](y)", "it's \"it\"", "back\\slash\\",
        "${source}", "\\${x}", "$NOT_SET", " a ", "1000", "true", "./null", "???", "a\nb", "x: y",
    ],
)  # fmt: skip
def test_a_path_is_taken_as_it_is(name, tmp_path, monkeypatch, distconv):
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / name, CASE)
    shown = yaml.safe_load(distconv(f"source={name}", "--cfg", "job", "--resolve").out)
    assert Path(shown["source"]) == Path(name)
    outcome = distconv(f"source={name}", f"target={name}-mm", *overrides(CASE), f"report={name}.json")
    assert outcome.status == 0, outcome.err
    assert describe_result(tmp_path / f"{name}-mm") == CASE["files"]
    assert Path(f"{name}.json").is_file()


def test_a_home_and_variables_are_replaced_and_quotes_of_hydra_are_understood(tmp_path, monkeypatch, distconv):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "some,where")
    write_source(tmp_path / "some,where", CASE)
    for source in ("~/some,where", "$HOME/${PLACE}", f'"{tmp_path}/some,where"'):
        outcome = distconv(f"source={source}", "target=~/mm", "overwrite=true", *overrides(CASE))
        assert outcome.status == 0, outcome.err
        assert describe_result(tmp_path / "mm") == CASE["files"]


def test_the_help_is_as_wide_as_a_terminal_and_knows_the_formats_of_today(distconv, monkeypatch):
    more = SimpleNamespace(name="npy", words="a directory of `.npy` files")
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, more))
    outcome = distconv("--help")
    assert outcome.status == 0
    assert outcome.out == f"{help_text()}\n"
    assert "npy (a directory of .npy files)" in " ".join(outcome.out.split())
    assert max(map(len, outcome.out.splitlines())) <= 120


def test_a_reader_of_what_hydra_prints_that_has_left_is_no_failure(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        job = subprocess.run(
            [sys.executable, "-m", "distconv", "--cfg", "job"], cwd=tmp_path, stdout=stream, stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (job.returncode, job.stderr) == (0, "")
