"""Published files that are fewer than the processes: several write one, and it is what one process makes of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from distconv.runtime.file_systems import keeps_writers_apart
from distconv.runtime.mounts import mounts
from tests.checkpoints import hashes, load_case, write_source
from tests.here import run_here
from tests.processes import stopping, stopping_parts, writing_wrongly
from tests.processes.jobs import MPIRUN, TORCHRUN, mpirun, run, single, torchrun

CASE = load_case("qwen3vl_moe__tp2_pp2")
BACK = ("target_format=hf", "io.fsync=false")
# The size of shard files, and how many there are then.
SIZES = {1: (), 2: ("shard_size=300KB",)}
PROCESSES = 4
SHARED = "io.shared_files=true"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A DCP that came from one published file, and what one process makes of it, by the number of files."""
    directory = tmp_path_factory.mktemp("sources")
    write_source(directory / "hf", CASE, single_file=True)
    run_here(source=str(directory / "hf"), target=str(directory / "dcp"), target_format="dcp")
    for count, options in SIZES.items():
        run_here(*BACK, *options, source=str(directory / "dcp"), target=str(directory / f"one-{count}"))
        assert len(list((directory / f"one-{count}").glob("*.safetensors"))) == count
    return directory


def arguments(sources: Path, count: int, *more: str) -> list[str]:
    return [f"source={sources / 'dcp'}", "target=result", *BACK, *SIZES[count], *more]


def shares(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((directory / "report.json").read_text())["processes"]
    return found


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_the_same_bytes_and_all_write(launcher, count, sources, tmp_path):
    given = arguments(sources, count, SHARED, "report=report.json")
    outcome = run(launcher(PROCESSES, *given), tmp_path)
    assert outcome.status == 0, outcome.err
    # The record too, with the checksums of files that nobody has written alone.
    assert hashes(tmp_path / "result") == hashes(sources / f"one-{count}")
    written = [share["bytes_written"] for share in shares(tmp_path)]
    assert min(written) > 0
    assert max(written) < 1.5 * sum(written) / PROCESSES
    assert run(single("action=verify", "target=result"), tmp_path).status == 0


@pytest.mark.parametrize("more", [("verify=true",), ("io.checksum=false",), ("io.fsync=true", "io.threads=1")])
def test_the_same_bytes_however_they_are_written(more, sources, tmp_path):
    outcome = run(mpirun(PROCESSES, *arguments(sources, 2, SHARED, *more)), tmp_path)
    assert outcome.status == 0, outcome.err
    found, expected = hashes(tmp_path / "result"), hashes(sources / "one-2")
    assert {name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)} == (
        {"distconv.json"} if "io.checksum=false" in more else set()
    )


def test_a_wrong_bit_in_a_part_is_found_by_its_reader_and_told_once(sources, tmp_path):
    command = [*TORCHRUN, str(PROCESSES), writing_wrongly.__file__, *arguments(sources, 1, SHARED, "verify=true")]
    outcome = run(command, tmp_path)
    assert outcome.status == 1
    assert outcome.told.count("verify=true: the result is not what its source says") == 1
    assert outcome.told.count(" is not what its source says, from element ") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_types_are_counted_once_whoever_casts_them(sources, tmp_path):
    given = ("dtype=float16", "dtype_overflow=allow", "report=report.json")
    one, four = tmp_path / "one", tmp_path / "four"
    for directory, launch in ((one, single), (four, lambda *each: mpirun(PROCESSES, *each))):
        directory.mkdir()
        outcome = run(launch(*arguments(sources, 1, SHARED, *given)), directory)
        assert outcome.status == 0, outcome.err
    assert hashes(one / "result") == hashes(four / "result")
    casts = [json.loads((each / "report.json").read_text())["casts"] for each in (one, four)]
    assert casts[0] == casts[1]
    assert casts[0]["overflowed"]


@pytest.mark.parametrize(("option", "is_shared"), [("true", True), ("false", False), ("auto", None)])
def test_the_plan_says_who_writes_what_as_it_is_done(option, is_shared, sources, tmp_path):
    """By itself where the file system allows it."""
    if is_shared is None:
        is_shared = keeps_writers_apart(tmp_path, mounts())
    given = arguments(sources, 2, f"io.shared_files={option}", "report=report.json")
    assert run(single("action=plan", f"processes={PROCESSES}", *given), tmp_path).status == 0
    planned = shares(tmp_path)
    assert run(mpirun(PROCESSES, *given), tmp_path).status == 0
    done = shares(tmp_path)
    for key in ("files", "bytes_read", "bytes_written"):
        assert [each[key] for each in planned] == [each[key] for each in done]
    assert sum(bool(each["bytes_written"]) for each in done) == (PROCESSES if is_shared else 2)


WAYS = {
    "torchrun": [*TORCHRUN, str(PROCESSES)],
    "mpirun": [*MPIRUN, str(PROCESSES), sys.executable, "-m", "mpi4py"],
}


@pytest.mark.parametrize(("way", "rank"), [("torchrun", 2), ("mpirun", 0)])
def test_a_file_is_made_again_if_one_of_its_writers_was_killed(way, rank, sources, tmp_path):
    given = arguments(sources, 1, SHARED)
    how = json.dumps({"rank": rank, "signal": signal.SIGKILL})
    killed = run([*WAYS[way], stopping_parts.__file__, how, *given], tmp_path)
    assert killed.status != 0
    assert not (tmp_path / "result").exists()
    again = run(mpirun(PROCESSES, *given), tmp_path)
    assert again.status == 0, again.err
    assert "had been finished before" not in again.out
    assert hashes(tmp_path / "result") == hashes(sources / "one-1")


def test_files_that_are_finished_are_continued(sources, tmp_path):
    """By fewer processes than those that wrote parts, of which one was killed when all parts were together."""
    given = arguments(sources, 2, SHARED)
    how = json.dumps({"rank": 0, "after": 1, "signal": signal.SIGKILL})
    assert run([*WAYS["mpirun"], stopping.__file__, how, *given], tmp_path).status != 0
    again = run(single(*given), tmp_path)
    assert again.status == 0, again.err
    assert "of which 2 files" in again.out
    assert hashes(tmp_path / "result") == hashes(sources / "one-2")


def test_what_is_damaged_of_a_shared_file_is_made_again_by_all(sources, tmp_path):
    given = arguments(sources, 2, SHARED, "report=report.json")
    how = json.dumps({"rank": 0, "after": 1, "signal": signal.SIGKILL})
    assert run([*WAYS["mpirun"], stopping.__file__, how, *given], tmp_path).status != 0
    (first, _) = sorted(tmp_path.rglob("*.safetensors"))
    with first.open("r+b") as stream:
        stream.seek(first.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    again = run(mpirun(PROCESSES, *given), tmp_path)
    assert (again.status, "of which 1 file" in again.out) == (0, True), again.err
    assert hashes(tmp_path / "result") == hashes(sources / "one-2")
    assert all(share["files"] == [first.name] for share in shares(tmp_path))


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_that_fails_ends_all_and_is_named(way, sources, tmp_path):
    how = json.dumps({"rank": 2, "error": errno.EIO})
    outcome = run([*WAYS[way], stopping_parts.__file__, how, *arguments(sources, 1, SHARED)], tmp_path)
    assert outcome.status != 0
    assert outcome.told.count("rank 2 on ") == 1
    assert os.strerror(errno.EIO) in outcome.told
    assert not outcome.shows_its_inside
    assert list(tmp_path.iterdir()) == []
