"""What a job has finished is not lost by its end: the same command continues it, with any number of processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import load_case, overrides, write_source
from tests.processes import stopping
from tests.processes.jobs import MPIRUN, TORCHRUN, Outcome, mpirun, run, single, torchrun

CASE = load_case("qwen2_5omni__tp1_pp4")
LAYOUT = [each for each in overrides(CASE) if "io." not in each]
FILES = 4
WAYS = {
    "single": ([sys.executable], single, 1),
    "torchrun": ([*TORCHRUN, "2"], lambda *given: torchrun(2, *given), 2),
    "mpirun": ([*MPIRUN, "2", sys.executable, "-m", "mpi4py"], lambda *given: mpirun(2, *given), 2),
}
ENDS = {
    "killed": {"signal": signal.SIGKILL},
    "preempted": {"signal": signal.SIGTERM},
    "failed": {"error": errno.EIO},
}
KEPT = "the same command continues it, action=clean removes it"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A source, and what is made of it by a job that nothing disturbs."""
    directory = tmp_path_factory.mktemp("made")
    write_source(directory / "hf", CASE)
    outcome = run(single(*LAYOUT, "source=hf", "target=mm"), directory)
    assert outcome.status == 0, outcome.err
    return directory / "hf", contents(directory / "mm")


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def arguments(source: Path, *more: str) -> list[str]:
    return [*LAYOUT, f"source={source}", "target=mm", *more]


def stopped(directory: Path, way: str, given: Sequence[str], **how: Any) -> Outcome:
    """A job that ends early; it has left a directory of work with finished files."""
    launcher, _, _ = WAYS[way]
    outcome = run([*launcher, stopping.__file__, json.dumps({"rank": 0, "after": 1, **how}), *given], directory)
    assert outcome.status != 0
    assert not outcome.shows_its_inside, outcome.err
    work(directory)
    return outcome


def work(directory: Path) -> Path:
    """The directory of work in the target, which holds nothing else for users."""
    (found,) = [path for path in (directory / "mm").iterdir() if path.name != ".distconv.lock"]
    assert found.name.startswith(".distconv-")
    return found


def files_of(place: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of the files of tensors: what is written again has others."""
    found = {path.relative_to(place).as_posix(): path.stat() for path in place.rglob("*.pt")}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", WAYS)
def test_the_same_command_continues_after_any_end(tmp_path, made, way, end):
    source, expected = made
    count = WAYS[way][2]
    outcome = stopped(tmp_path, way, arguments(source), **ENDS[end], after=2 // count)
    if end != "killed":
        assert KEPT in outcome.out + outcome.err
    before = files_of(work(tmp_path) / "new")
    # By others than those that began it.
    again = run(WAYS["torchrun" if way == "single" else "single"][1](*arguments(source)), tmp_path)
    assert again.status == 0, again.err
    assert "had been finished before" in again.out
    assert contents(tmp_path / "mm") == expected
    after = files_of(tmp_path / "mm" / "release")
    kept = {name for name, identity in after.items() if before.get(name) == identity}
    # Two processes may finish all.
    assert 1 <= len(kept) <= (FILES - 1 if count == 1 else FILES)
    assert f"of which {len(kept)} file" in again.out


def test_a_rank_that_is_killed_leaves_the_work_of_all(tmp_path, made):
    source, expected = made
    stopped(tmp_path, "torchrun", arguments(source), rank=1, signal=signal.SIGKILL)
    assert run(single(*arguments(source)), tmp_path).status == 0
    assert contents(tmp_path / "mm") == expected


def test_what_is_damaged_meanwhile_is_written_again(tmp_path, made):
    source, expected = made
    stopped(tmp_path, "single", arguments(source), after=3, signal=signal.SIGKILL)
    new = work(tmp_path) / "new"
    first, second, *_ = sorted(new.rglob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    with first.open("r+b") as stream:
        stream.seek(first.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    second.unlink()
    again = run(single(*arguments(source)), tmp_path)
    assert (again.status, "of which 1 file" in again.out) == (0, True), again.out
    assert contents(tmp_path / "mm") == expected


def test_another_command_is_refused_until_what_is_left_is_removed(tmp_path, made):
    source, _ = made
    stopped(tmp_path, "single", arguments(source), signal=signal.SIGKILL)
    left = work(tmp_path)
    refused = run(single(*arguments(source, "dtype=float32")), tmp_path)
    assert refused.status == 2
    assert f"1 finished file of it in {left} cannot be continued: dtype: was not given, is float32" in refused.err
    assert "action=clean" in refused.err
    assert work(tmp_path) == left
    # What does not shape the result may be another.
    told = run(single(*arguments(source, "dtype=float32", "action=plan")), tmp_path)
    assert told.status == 0
    assert run(single("action=clean", "target=mm"), tmp_path).status == 0
    assert run(single(*arguments(source, "dtype=float32")), tmp_path).status == 0


def test_a_source_that_has_changed_is_named(tmp_path):
    source = write_source(tmp_path / "hf", CASE)
    stopped(tmp_path, "single", arguments(source), signal=signal.SIGKILL)
    changed = next(source.glob("*.safetensors"))
    os.utime(changed, ns=(1, 1))
    refused = run(single(*arguments(source)), tmp_path)
    assert refused.status == 2
    assert f"{changed} is not the file that it was" in refused.err
    assert work(tmp_path).is_dir()


def test_options_of_the_run_may_be_others(tmp_path, made):
    source, expected = made
    stopped(tmp_path, "single", arguments(source, "io.fsync=false"), signal=signal.SIGKILL)
    again = run(single(*arguments(source, "io.threads=1", "io.buffer_mib=1", "patience=60")), tmp_path)
    assert (again.status, "of which 1 file" in again.out) == (0, True), again.out
    assert contents(tmp_path / "mm") == expected


def test_without_checksums_what_is_durable_is_continued_and_nothing_else(tmp_path, made):
    source, expected = made
    for durable in ("true", "false"):
        given = arguments(source, "io.checksum=false", f"io.fsync={durable}", "overwrite=true")
        launcher, _, _ = WAYS["single"]
        how = json.dumps({"rank": 0, "after": 2, "signal": signal.SIGKILL})
        assert run([*launcher, stopping.__file__, how, *given], tmp_path).status == -signal.SIGKILL
        again = run(single(*given), tmp_path)
        assert again.status == 0, again.err
        assert ("had been finished before" in again.out) == (durable == "true")
        found = contents(tmp_path / "mm")
        assert {name for name in found if found[name] != expected.get(name)} <= {"release/distconv.json"}
