"""Processes that save one DCP together: the same bytes from any number of them, all or nothing, and constant memory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from math import prod

import pytest

from distconv.errors import JobError
from distconv.transfer import write
from tests.checkpoints import describe_dcp, hashes, load_case, tensor_bytes, write_source
from tests.errors.damage import config, sized, sparse
from tests.processes.jobs import mpirun, run, single, torchrun
from tests.processes.memory import SIZES, as_type, assert_alike, peak, shares_of_two, write_lookalike
from tests.processes.worlds import OVER, World, check_message, killed_while_the_other_waits

CASE = "qwen2vl__tp1_pp1"
SHARD = "model-00005-of-00005.safetensors"
DCP = ("target_format=dcp", "io.fsync=false")
PUBLISHED = (*DCP, "naming=hf", "name_prefix=module.")
LAUNCHERS = pytest.mark.parametrize("launcher", [torchrun, mpirun])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint whose two largest tensors are several chunks each, and whose result is several files."""
    case, rows = load_case(CASE), 3 * 10**6
    config("vocab_size", rows)(case)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        sized(name, rows=rows)(case)
    return case, write_source(tmp_path_factory.mktemp("large") / "hf", case)


@pytest.fixture(scope="module")
def expected(large, tmp_path_factory):
    """The directories that one process makes of it, by its options."""
    found = {}
    for options in (DCP, PUBLISHED):
        directory = tmp_path_factory.mktemp("alone")
        outcome = run(single(f"source={large[1]}", "target=mm", *options), directory)
        assert outcome.status == 0, outcome.err
        found[options] = directory / "mm"
    return found


def test_one_process_writes_what_the_source_holds(large, expected):
    """Read back by torch, from chunks in several files."""
    stored = {
        f"model.module.{name}": [dtype, shape, hashlib.sha256(tensor_bytes(name, dtype, shape)).hexdigest()]
        for name, (dtype, shape, _) in large[0]["source_tensors"].items()
    }

    assert describe_dcp(expected[PUBLISHED] / "release") == {**stored, "checkpoint_version": 3.0}


@pytest.mark.parametrize(
    ("launcher", "count", "options"),
    [*((torchrun, count, PUBLISHED) for count in (1, 2, 3, 4)), (mpirun, 2, PUBLISHED), (torchrun, 3, DCP)],
)
def test_same_bytes(launcher, count, options, large, expected, tmp_path):
    outcome = run(launcher(count, f"source={large[1]}", "target=mm", "report=report.json", *options), tmp_path)

    assert outcome.status == 0, outcome.err
    found = hashes(tmp_path / "mm")
    assert found == hashes(expected[options])
    files = [path for path in found if path.endswith(".distcp")]
    assert f"wrote {len(files)} files" in outcome.out
    assert len(files) >= count
    shares = json.loads((tmp_path / "report.json").read_text())["processes"]
    assert [bool(share["files"]) for share in shares] == [True] * count
    stored = sum(path.stat().st_size for path in large[1].glob("*.safetensors"))
    assert sum(share["bytes_read"] for share in shares) < stored


def test_same_bytes_in_another_dialect_there_and_back(tmp_path):
    """Experts are packed, renamed and unpacked by any number of processes alike."""
    source = write_source(tmp_path / "hf", load_case("qwen3vl_moe__tp1_pp1"))
    there = (f"source={source}", *DCP, "naming=hf", "dialect=mm_wrapped")
    back = ("source=dcp-2", "target_format=hf", "io.fsync=false", "shard_size=20KB")
    for launcher in (single, lambda *words: torchrun(2, *words)):
        number = 1 if launcher is single else 2
        outcome = run(launcher(*there, f"target=dcp-{number}"), tmp_path)
        assert outcome.status == 0, outcome.err
    for launcher in (single, lambda *words: torchrun(3, *words)):
        number = 1 if launcher is single else 3
        outcome = run(launcher(*back, f"target=out-{number}"), tmp_path)
        assert outcome.status == 0, outcome.err
    assert hashes(tmp_path / "dcp-1") == hashes(tmp_path / "dcp-2")
    assert hashes(tmp_path / "out-1") == hashes(tmp_path / "out-3")
    assert len(list((tmp_path / "out-1").glob("*.safetensors"))) > 3


@pytest.fixture
def world(tmp_path):
    """Rank 0 writes one file, rank 1 two; nothing is read but the shard that each rank sees in its own way."""
    case = load_case(CASE)
    # Of no definition and of no size that the configuration says, so that a shard may be of any.
    config("model_type", "unheard_of")(case)
    config("vocab_size", None)(case)
    write_source(tmp_path / "hf", case)
    made = World(tmp_path, f"hf/{SHARD}", "mm", *PUBLISHED)
    for rank in made.own:
        sparse(f"{rank}/shard", "lm_head.weight", 4 * 10**6)(tmp_path)
    return made


@LAUNCHERS
@pytest.mark.parametrize("rank", [0, 1])
def test_the_disk_is_full_for_one_process(launcher, rank, world):
    """A limit on the size of files stands for a full disk."""
    world.own[str(rank)]["limits"] = {"RLIMIT_FSIZE": 64 * 1024**2}

    outcome = run(launcher(2, *world.arguments(), own=world.own), world.directory)

    assert outcome.status == 1
    assert outcome.seconds < OVER
    check_message(outcome, f"distconv: rank {rank} on ", f"__{rank}_0.distcp", "File too large")
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


@LAUNCHERS
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_dies(launcher, victim, world):
    """Nothing that looks like a result, nor `.metadata` anywhere, without which no program takes files for a DCP."""
    outcome = killed_while_the_other_waits(launcher, victim, world)

    assert outcome.status != 0
    assert not outcome.shows_its_inside
    assert world.results() == []
    assert list(world.directory.rglob(".metadata*")) == []


def test_metadata_that_cannot_be_written_are_written_when_the_job_is_continued(tmp_path, monkeypatch, distconv):
    """The disk becomes full at the very end."""

    def full(path, *rest):
        if path.name == ".metadata":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mm/.metadata")
        return written(path, *rest)

    written = write._write_whole
    source = write_source(tmp_path / "hf", load_case(CASE))
    job = (f"source={source}", f"target={tmp_path / 'mm'}", "target_format=dcp")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(write, "_write_whole", full)
        outcome = distconv(*job)

    assert outcome.status == JobError.exit_status
    assert outcome.err.splitlines()[-1].endswith("finishing /mm/.metadata: No space left on device")
    assert [path.name[:10] for path in (tmp_path / "mm").iterdir()] == [".distconv-"]
    outcome = distconv(*job)
    assert (outcome.status, "had been finished before" in outcome.out) == (0, True)


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """Two processes; a checkpoint of no data, and one of a hundred times what memory may grow by."""
    peaks = []
    for size in (SIZES[0], 10**9):
        source = tmp_path / str(size)
        stored = write_lookalike(source, size, as_type("bfloat16"))
        shares = shares_of_two(tmp_path, f"source={source}", f"target={tmp_path / 'mm'}", *DCP)
        assert sum(share["bytes_written"] for share in shares) == 2 * sum(prod(shape) for _, shape in stored.values())
        peaks.append(peak(shares))
    assert_alike(*peaks)
