"""A cast on several processes: the same bytes and the same counts, and memory that does not depend on the model."""

from __future__ import annotations

import json
import shutil
from math import prod

import numpy as np
import pytest

from distconv.errors import JobError
from tests.checkpoints import hashes, load_case, overrides, write_safetensors, write_source
from tests.here import run_here
from tests.processes.jobs import mpirun, run, torchrun
from tests.processes.memory import SIZES, as_type, assert_alike, peak, shares_of_two, write_lookalike

CASE = "qwen3vl_moe__tp2_pp2"
TO_HF = ("target_format=hf", "dtype=float16", "dtype_overflow=allow", "io.fsync=false")
RESPLIT = ("layout.ep=4", "layout.stages.text=[3,2,1]", "layout.stages.vision=[2,3,0]", "io.fsync=false", *TO_HF[1:3])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A float32 checkpoint, some numbers of which are too large for float16, and what training would start with."""
    directory = tmp_path_factory.mktemp("sources")
    case = load_case(CASE)
    source = write_source(directory / "hf", case)
    generator = np.random.default_rng(0)
    shards: dict[str, dict[str, tuple[str, list[int], bytes]]] = {}
    for name, (_, shape, shard) in case["source_tensors"].items():
        values = generator.standard_cauchy(prod(shape)).astype(np.float32) * 100
        shards.setdefault(shard, {})[name] = ("float32", shape, values.tobytes())
    for shard, tensors in shards.items():
        write_safetensors(source / shard, tensors)
    model, *layout = overrides(case)
    run_here(model, *layout, source=str(source), target=str(directory / "mm"), layout__ep=2)
    return directory


@pytest.fixture(scope="module")
def expected(sources):
    """The files that one process makes, and what it counts."""
    found = {}
    for options in (TO_HF, RESPLIT):
        target, report = sources / f"out-{len(found)}", sources / f"report-{len(found)}.json"
        run_here(*options, source=str(sources / "mm"), target=str(target), report=str(report))
        found[options] = hashes(target), json.loads(report.read_text())["casts"]
    return found


@pytest.mark.parametrize(
    ("launcher", "count", "options"),
    [
        *((torchrun, count, options) for count in (2, 3) for options in (TO_HF, RESPLIT)),
        (mpirun, 2, TO_HF),
    ],
)
def test_same_bytes_and_same_counts(launcher, count, options, sources, expected, tmp_path):
    arguments = [f"source={sources / 'mm'}", "target=result", "report=report.json", *options]

    outcome = run(launcher(count, *arguments), tmp_path)

    assert outcome.status == 0, outcome.err
    files, casts = expected[options]
    assert hashes(tmp_path / "result") == files
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["casts"] == casts
    assert sum(each["elements"] for each in casts["overflowed"]) > 0
    assert [bool(share["files"]) for share in found["processes"]] == [True] * count


def test_what_overflows_on_any_process_is_named_once_and_leaves_nothing(sources, expected, tmp_path):
    arguments = [f"source={sources / 'mm'}", "target=result", "target_format=hf", "dtype=float16"]

    outcome = run(torchrun(2, *arguments), tmp_path)

    assert outcome.status == JobError.exit_status
    total = sum(each["elements"] for each in expected[TO_HF][1]["overflowed"])
    assert outcome.told.count(f"dtype: {total} numbers of ") == 1
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """A float32 checkpoint of no data, and one of thirty times what memory may grow by; cut and cast."""
    peaks = []
    for size in SIZES:
        source = tmp_path / f"hf{size}"
        write_lookalike(source, size, as_type("float32"))
        options = [f"source={source}", f"target={tmp_path / 'out'}", "layout.tp=2", "dtype=bfloat16", "io.fsync=false"]
        peaks.append(peak(shares_of_two(tmp_path, *options)))
        shutil.rmtree(tmp_path / "out")
    assert_alike(*peaks)
