"""Results that several processes check before the commit: for each other, in constant memory, all or none."""

from __future__ import annotations

import json
import shutil

import pytest

from distconv.formats.dcp.plan import CHUNK_BYTES
from tests.checkpoints import hashes, load_case, write_source
from tests.here import run_here
from tests.processes import writing_wrongly
from tests.processes.jobs import TORCHRUN, mpirun, run, torchrun
from tests.processes.memory import GROWTH, as_type, peak, shares_of_two, write_lookalike

CASE = load_case("qwen3vl_moe__tp2_pp2")
TARGETS = {
    "mm": ("layout.tp=2", "layout.pp=2", "layout.vpp=2", "dtype=float16", "dtype_overflow=allow"),
    "dcp": ("target_format=dcp",),
    "td": ("target_format=torch_dist",),
    "hf": ("target_format=hf",),
}
# Models that fill all buffers.
MAPPED = (10**8, 6 * 10**8)
# A DCP is read in whole chunks, and the smaller of these has some of the largest. Copies that torch makes of them stay
# in its heap for a while.
IN_CHUNKS = (3 * 10**8, 12 * 10**8)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A published model, and a DCP of it."""
    directory = tmp_path_factory.mktemp("sources")
    write_source(directory / "model", CASE)
    run_here(source=str(directory / "model"), target=str(directory / "trained"), target_format="dcp")
    return directory


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
@pytest.mark.parametrize("name", TARGETS)
def test_the_same_bytes(launcher, name, sources, tmp_path):
    given = [f"source={sources / ('trained' if name == 'hf' else 'model')}", *TARGETS[name]]
    run_here(*given, f"target={tmp_path / 'one'}")
    outcome = run(launcher(2, *given, "target=two", "verify=true", "report=report.json"), tmp_path)
    assert outcome.status == 0, outcome.err
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
    shares = json.loads((tmp_path / "report.json").read_text())["processes"]
    assert all("verifying" in share["seconds"] for share in shares)
    # The bytes of the checked files, not of those that a process wrote, count as read.
    assert sum(share["bytes_read"] for share in shares) >= sum(share["bytes_written"] for share in shares)
    assert "as programs read them; on 2 processes" in outcome.out


@pytest.mark.parametrize("name", ["mm", "hf"])
def test_a_wrong_bit_of_one_process_is_told_once_and_leaves_nothing(name, sources, tmp_path):
    given = [f"source={sources / ('trained' if name == 'hf' else 'model')}", *TARGETS[name], "target=result"]
    command = [*TORCHRUN, "2", writing_wrongly.__file__, *given, "verify=true"]
    outcome = run(command, tmp_path)
    assert outcome.status == 1
    assert outcome.told.count("verify=true: the result is not what its source says") == 1
    assert outcome.told.count(" is not what its source says, from element ") == 1
    assert not outcome.shows_its_inside
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("route", "sizes", "growth"),
    [
        (("layout.tp=2",), MAPPED, GROWTH),
        (("target_format=hf",), MAPPED, GROWTH),
        (("target_format=dcp",), IN_CHUNKS, 2 * CHUNK_BYTES),
    ],
    ids=["mm", "hf", "dcp"],
)
def test_memory_does_not_grow_with_the_result(route, sizes, growth, tmp_path):
    peaks = []
    for size in sizes:
        source = tmp_path / f"hf{size}"
        write_lookalike(source, size, as_type("bfloat16"))
        if route == ("target_format=hf",):
            run_here(source=str(source), target=str(tmp_path / "mm"), layout__tp=2, io__fsync=False)
            source = tmp_path / "mm"
        options = [f"source={source}", f"target={tmp_path / 'out'}", "io.fsync=false", "verify=true", *route]
        peaks.append(peak(shares_of_two(tmp_path, *options)))
        shutil.rmtree(tmp_path / "out")
        shutil.rmtree(source)
    small, large = peaks
    assert large - small < growth
    # What a process would hold of the larger result, if it gave nothing back.
    assert (sizes[1] - sizes[0]) // 2 > 2 * growth
