"""The way back and the way to another layout on several processes: the same bytes, all or nothing, constant memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from math import prod

import pytest

from distconv.errors import JobError
from distconv.formats.torch_zip.archive import read_archive
from distconv.transfer import write
from tests.checkpoints import hashes, load_case, overrides, write_source
from tests.here import run_here
from tests.processes.jobs import mpirun, run, torchrun
from tests.processes.memory import SIZES, as_type, assert_alike, peak, shares_of_two, write_lookalike
from tests.processes.worlds import OVER, World, check_message, killed_while_the_other_waits

FILE = "model_optim_rng.pt"
# Experts, cut by tensor, pipeline and expert parallel rank: eight files.
CASE = "qwen3vl_moe__tp2_pp2"
BACK = ("target_format=hf", "io.fsync=false")
RESPLIT = ("layout.ep=4", "layout.stages.text=[3,2,1]", "layout.stages.vision=[2,3,0]", "io.fsync=false")
MEGATRON, DCP = "mm", "dcp"
RECORD = "distconv.json"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The checkpoint `hf` of the case, and what training would start with: `mm`, and `dcp` in the published names."""
    directory = tmp_path_factory.mktemp("sources")
    case = load_case(CASE)
    model, *layout = overrides(case)
    write_source(directory / "hf", case)
    paths = {name: {"source": str(directory / "hf"), "target": str(directory / name)} for name in (MEGATRON, DCP)}
    run_here(model, *layout, **paths[MEGATRON], layout__ep=2)
    run_here(model, **paths[DCP], target_format="dcp", naming="hf", name_prefix="module.")
    assert len(list((directory / MEGATRON).rglob("*.pt"))) == 8
    return directory


@pytest.fixture(scope="module")
def expected(sources):
    """The files that one process makes of a source, by source and options."""
    found = {}
    for name in (MEGATRON, DCP):
        for options in (BACK, RESPLIT):
            target = sources / f"{name}-{len(found)}"
            run_here(*options, source=str(sources / name), target=str(target))
            found[name, options] = hashes(target)
    # But for the records, which say of what they are made.
    one, other = ({**found[name, BACK], RECORD: ""} for name in (MEGATRON, DCP))
    assert one == other
    return found


@pytest.mark.parametrize(
    ("launcher", "count", "name", "options"),
    [
        *((torchrun, count, MEGATRON, BACK) for count in (1, 2, 3)),
        (mpirun, 2, MEGATRON, BACK),
        (torchrun, 3, MEGATRON, RESPLIT),
        (mpirun, 2, MEGATRON, RESPLIT),
        (mpirun, 2, DCP, BACK),
        (torchrun, 3, DCP, RESPLIT),
    ],
)
def test_same_bytes(launcher, count, name, options, sources, expected, tmp_path):
    arguments = [f"source={sources / name}", "target=result", "report=report.json", *options]

    outcome = run(launcher(count, *arguments), tmp_path)

    assert outcome.status == 0, outcome.err
    assert hashes(tmp_path / "result") == expected[name, options]
    shares = json.loads((tmp_path / "report.json").read_text())["processes"]
    assert [bool(share["files"]) for share in shares] == [True] * count


@pytest.mark.parametrize(
    ("launcher", "options"), [pytest.param(mpirun, BACK, id="back"), pytest.param(torchrun, RESPLIT, id="resplit")]
)
def test_a_replica_of_one_rank_that_differs(launcher, options, sources, tmp_path):
    """A bit of a norm, which each tensor and each expert parallel rank holds."""
    shutil.copytree(sources / MEGATRON, tmp_path / MEGATRON)
    changed, name = f"{MEGATRON}/release/mp_rank_01_001_001/{FILE}", "text_decoder.decoder.final_layernorm.weight"
    with (tmp_path / changed).open("r+b") as stream:
        offset = read_archive(tmp_path / changed)["model"][name].offset
        byte = os.pread(stream.fileno(), 1, offset)[0]
        os.pwrite(stream.fileno(), bytes([byte ^ 1]), offset)
    before = sorted(tmp_path.rglob("*"))

    outcome = run(launcher(2, f"source={MEGATRON}", "target=result", "report=report.json", *options), tmp_path)

    # torchrun ends with 1 whatever its processes end with.
    assert outcome.status == (2 if launcher is mpirun else 1)
    check_message(outcome, f"{changed}: its copy of {name} differs", "must agree")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def world(tmp_path):
    """Four pipeline stages and no tensor parallel ranks, so that nothing is stored twice and writing comes first.

    The file that each sees in its own way is looked at by rank 0, and rank 1 makes tensors of it.
    """
    case = load_case("qwen2vl__tp1_pp4")
    run_here(*overrides(case), source=str(write_source(tmp_path / "hf", case)), target=str(tmp_path / MEGATRON))
    return World(tmp_path, f"{MEGATRON}/release/mp_rank_00_002/{FILE}", "result", *BACK)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_disk_is_full_for_one_process(rank, world):
    """A limit on the size of files stands for a full disk."""
    world.own[str(rank)]["limits"] = {"RLIMIT_FSIZE": 32 * 1024}

    outcome = run(torchrun(2, *world.arguments(), own=world.own), world.directory)

    assert outcome.status == 1
    assert outcome.seconds < OVER
    check_message(outcome, f"distconv: rank {rank} on ", "model-0000", "File too large")
    world.check_unfinished(outcome)


def test_a_file_of_the_source_is_cut_off_meanwhile(world):
    os.truncate(world.views[1], 1000)

    outcome = run(mpirun(2, *world.arguments(), own=world.own), world.directory)

    assert outcome.status == 1
    check_message(outcome, "distconv: rank 1 on ", f"{MEGATRON}/release/mp_rank_00_002/{FILE}", "now 1000")
    world.check_unfinished(outcome)


@pytest.mark.parametrize(("launcher", "victim"), [(torchrun, 1), (mpirun, 0)])
def test_a_process_dies(launcher, victim, world):
    outcome = killed_while_the_other_waits(launcher, victim, world)

    assert outcome.status != 0
    assert not outcome.shows_its_inside
    # Only the first process can clean up, and mpirun leaves nobody the time for it.
    if launcher is torchrun:
        world.check_unfinished(outcome)
    assert world.results() == []


def test_side_files_that_cannot_be_copied_are_copied_when_the_job_is_continued(
    sources, tmp_path, monkeypatch, distconv
):
    """The disk becomes full at the very end."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "config.json")

    job = (f"source={sources / MEGATRON}", f"target={tmp_path / 'result'}", *BACK)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(write, "_write_whole", full)
        outcome = distconv(*job)

    assert outcome.status == JobError.exit_status
    assert outcome.err.splitlines()[-1].endswith("No space left on device")
    assert [path.name[:10] for path in tmp_path.iterdir()] == [".distconv-"]
    outcome = distconv(*job)
    assert (outcome.status, "had been finished before" in outcome.out) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize("name", [MEGATRON, DCP])
def test_memory_does_not_grow_with_the_checkpoint(name, tmp_path):
    """Two processes; a checkpoint of no data, and one of thirty times what memory may grow by."""
    made = {MEGATRON: {"layout__tp": 2}, DCP: {"target_format": "dcp"}}[name]
    peaks = []
    for size in SIZES:
        source, trained = tmp_path / f"hf{size}", tmp_path / str(size)
        stored = write_lookalike(source, size, as_type("bfloat16"))
        shards = {tensor: f"model-{number % 2}.safetensors" for number, tensor in enumerate(stored)}
        run_here(source=str(source), target=str(trained), io__fsync=False, **made)
        # Only the map of the reference is there: two shards, so that each process writes one.
        (source / "model.safetensors").unlink()
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        shares = shares_of_two(tmp_path, f"source={trained}", f"target={tmp_path / 'back'}", *BACK)
        assert sum(share["bytes_written"] for share in shares) == 2 * sum(prod(shape) for _, shape in stored.values())
        peaks.append(peak(shares))
        shutil.rmtree(trained)
    assert_alike(*peaks)
