"""Several checkpoints on several processes, and a watch of a training that runs."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.checkpoints import describe_result, load_case, overrides, write_source
from tests.here import run_here
from tests.processes.jobs import Job, mpirun, run, single, torchrun
from tests.processes.worlds import World

CASE = load_case("qwen2vl__tp2_pp2")
SHARD = "model-00004-of-00005.safetensors"
TRACKER = "latest_checkpointed_iteration.txt"


def enlarge(source: Path) -> None:
    """Make a source too large for one process, by a file that nobody reads."""
    with open(source / "large", "wb") as large:
        large.truncate(2**31)


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_a_job_that_fails_on_one_process_does_not_keep_the_next_one_from_running(launcher, tmp_path):
    for name in ("bad", "good"):
        enlarge(write_source(tmp_path / name, CASE))
    world = World(tmp_path, f"bad/{SHARD}", "mm")
    world.views[1].unlink()
    options = [f"sources={tmp_path}/*d", f"target={tmp_path}/mm/{{name}}", f"report={tmp_path}/all.json"]
    # Long enough for processes to ask whether another one has failed.
    own = {rank: {**each, "slow": 0.05} for rank, each in world.own.items()}
    outcome = run(launcher(2, *options, *overrides(CASE), own=own), tmp_path)
    found = json.loads((tmp_path / "all.json").read_text())["checkpoints"]
    assert [each["outcome"] for each in found] == ["failed", "done"], outcome.err
    assert outcome.status == 1
    assert "rank 1 on " in found[0]["why"]
    assert describe_result(tmp_path / "mm/good") == CASE["files"]
    assert not list((tmp_path / "mm/bad").glob("[!.]*"))


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_small_ones_are_converted_side_by_side(launcher, tmp_path):
    write_source(tmp_path / "hf_0", CASE)
    for number in range(1, 6):
        shutil.copytree(tmp_path / "hf_0", tmp_path / f"hf_{number}")
    enlarge(tmp_path / "hf_2")
    # One of those of rank 1; of the same size as the others.
    config = tmp_path / "hf_3/config.json"
    config.write_text(config.read_text().replace("{", "(", 1))
    options = ["sources=hf_*", "target=mm/{name}", "report=all.json", *overrides(CASE)]
    outcome = run(launcher(2, *options), tmp_path)
    assert outcome.status == 1
    found = json.loads((tmp_path / "all.json").read_text())["checkpoints"]
    assert [each["outcome"] for each in found] == ["done", "done", "done", "failed", "done", "done"], outcome.err
    ranks = [[share["rank"] for share in each["report"]["processes"]] for each in found if each["report"]]
    assert ranks == [[0], [1], [0, 1], [1], [0]]
    for number in (0, 1, 2, 4, 5):
        assert describe_result(tmp_path / f"mm/hf_{number}") == CASE["files"]
    assert outcome.out.count("\nwrote ") == 5
    assert "hf_3/config.json: not valid JSON" in outcome.err
    again = run(launcher(2, *options, "action=verify"), tmp_path)
    assert "5 done, 0 skipped, 1 failed" in again.out, again.err


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_a_process_that_hangs_with_a_small_one_ends_the_job(launcher, tmp_path):
    for name in "ab":
        write_source(tmp_path / name, CASE)
    world = World(tmp_path, f"b/{SHARD}", "mm")
    world.hold(1)
    options = [f"sources={tmp_path}/[ab]", f"target={tmp_path}/mm/{{name}}", "patience=5", *overrides(CASE)]
    outcome = run(launcher(2, *options, own=world.own), tmp_path)
    assert outcome.status in (1, 1 | signal.SIGKILL), outcome.err
    says = ["distconv: rank 1 on ", "no progress in 5 s; it was last seen reading the headers", f"b/{SHARD}"]
    assert [each for each in says if each not in outcome.err] == [], outcome.err
    assert not outcome.shows_its_inside
    assert describe_result(tmp_path / "mm/a") == CASE["files"]
    assert not list((tmp_path / "mm/b").glob("[!.]*"))


def trained(directory: Path, made: Path, number: int) -> None:
    """Training has written an iteration, but does not say so yet."""
    shutil.copytree(made, directory / f"iter_{number:07d}")


@pytest.mark.parametrize("launcher", [single, lambda *words: torchrun(2, *words)], ids=["one", "two"])
def test_a_watch_converts_each_iteration_once_the_tracker_names_it(launcher, tmp_path):
    write_source(tmp_path / "hf", CASE)
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), layout__tp=2)
    made, training, back = tmp_path / "mm/release", tmp_path / "run", tmp_path / "back"
    report = tmp_path / "all.json"
    options = ["sources=run/*", "target=back/{name}", "target_format=hf", "watch=true", "patience=2"]
    with Job(launcher(*options, "report=all.json"), tmp_path) as job:
        (training / "tensorboard").mkdir(parents=True)
        trained(training, made, 10)
        trained(training, made, 20)
        (training / TRACKER).write_text("10")
        job.until((back / "iter_0000010/config.json").exists, "the first iteration")
        assert not (back / "iter_0000020").exists()
        trained(training, made, 30)
        shutil.rmtree(training / "iter_0000030/mp_rank_00")
        trained(training, made, 40)
        (training / TRACKER).write_text("40")
        job.until(lambda: report.exists() and "iter_0000040" in report.read_text(), "the last iteration")
        job.send(signal.SIGTERM)
        outcome = job.end()
    # One of them failed; torchrun has a status of its own.
    assert outcome.status == 1, outcome.err
    found = json.loads(report.read_text())["checkpoints"]
    assert [(each["source"], each["outcome"]) for each in found] == [
        ("run/iter_0000010", "done"),
        ("run/iter_0000020", "done"),
        ("run/iter_0000030", "failed"),
        ("run/iter_0000040", "done"),
    ]
    assert outcome.out.count("note: run/tensorboard: is not converted") == 1
    if launcher is single:
        assert "3 done, 0 skipped, 1 failed" in outcome.out
        assert not outcome.shows_its_inside


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watch_of_nothing_yet_ends_well(number, tmp_path):
    with Job(single("sources=run/iter_*", "target=back/{name}", "target_format=hf", "watch=true"), tmp_path) as job:
        job.until(lambda: job.has_said("watching run/iter_*"), "the watch")
        job.send(number)
        outcome = job.end()
    assert (outcome.status, outcome.err) == (0, "")
