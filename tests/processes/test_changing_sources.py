"""Every process compares what it reads with what was planned: what it sees itself counts, but for numbers of inodes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.checkpoints import hashes, load_case, tensor_bytes, write_safetensors, write_source
from tests.processes.jobs import Job, mpirun, run, single, torchrun
from tests.processes.worlds import OVER, SHARE, World, check_message

CASE = load_case("qwen2vl__tp2_pp2")
SHARD = "model-00004-of-00005.safetensors"
REPLACED = [f"model-0000{number}-of-00005.safetensors" for number in (1, 3, 5)]
LAUNCHERS = pytest.mark.parametrize("launcher", [torchrun, mpirun])


@pytest.fixture
def world(tmp_path):
    write_source(tmp_path / "hf", CASE)
    return World(tmp_path, f"hf/{SHARD}", "mm", "layout.tp=2")


def with_time_of(path: Path, other: Path) -> None:
    os.utime(path, ns=(other.stat().st_atime_ns, other.stat().st_mtime_ns))


@LAUNCHERS
def test_processes_may_see_other_inodes_of_one_file(launcher, world):
    assert world.views[0].stat().st_ino != world.views[1].stat().st_ino
    outcome = run(launcher(2, *world.arguments(), own=world.own), world.directory)
    assert outcome.status == 0, outcome.err
    shutil.move(world.target, world.directory / "two")
    assert run(single(*world.arguments(), own=world.own), world.directory).status == 0
    assert hashes(world.target) == hashes(world.directory / "two")


@LAUNCHERS
def test_three_of_five_shards_are_replaced_while_a_process_waits_for_another(launcher, world):
    world.hold_intact(1)
    write_source(world.directory / "other", {**CASE, "salt": "other"})

    with Job(launcher(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        time.sleep(SHARE)
        for name in REPLACED:
            new, old = world.directory / "other" / name, world.directory / "hf" / name
            assert new.stat().st_size == old.stat().st_size
            new.rename(old)
        outcome = job.end(world.release)

    assert outcome.status == 1
    check_message(outcome, *(f"{world.directory}/hf/{name}: was modified at " for name in REPLACED))
    assert f"hf/{SHARD}: " not in outcome.err
    assert not world.target.exists()


@LAUNCHERS
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_that_only_the_first_process_read_changes(launcher, name, world):
    world.hold_intact(1)
    path = world.directory / "hf" / name

    with Job(launcher(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        content = path.read_bytes()
        path.write_bytes(content.replace(b" ", b"\n", 1))
        outcome = job.end(world.release)

    assert outcome.status == 1
    check_message(outcome, "rank 0 on ", f"{path}: was modified at ", "its content is another")
    assert not world.target.exists()


@LAUNCHERS
def test_a_process_sees_another_order_of_tensors_at_the_same_time(launcher, world):
    held = {name: each for name, each in CASE["source_tensors"].items() if each[2] == SHARD}
    tensors = {name: (dtype, shape, tensor_bytes(name, dtype, shape)) for name, (dtype, shape, _) in held.items()}
    size = world.views[1].stat().st_size
    write_safetensors(world.views[1], dict(reversed(tensors.items())))
    os.truncate(world.views[1], size)
    with_time_of(world.views[1], world.views[0])

    outcome = run(launcher(2, *world.arguments(), own=world.own), world.directory)

    assert outcome.status == 1
    assert outcome.seconds < OVER
    check_message(outcome, "rank 1 on ", f"hf/{SHARD}: its header is another: it is being changed")
    assert not world.target.exists()
