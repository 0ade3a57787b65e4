"""torch_dist checkpoints of several processes: the bytes of one process, one voice, and constant memory."""

from __future__ import annotations

from math import prod

import pytest

from tests.checkpoints import hashes
from tests.golden.samples import reference, unpacked
from tests.here import run_here
from tests.processes.jobs import mpirun, run, torchrun
from tests.processes.memory import SIZES, as_type, assert_alike, peak, shares_of_two, write_lookalike

CASE = "dsv3_16_tp2"


@pytest.mark.parametrize("options", [("target_format=hf", "shard_size=32kB"), ("layout.tp=2", "layout.ep=2")])
def test_same_bytes(options, tmp_path):
    source = [f"source={unpacked(CASE, 'td', tmp_path)}", f"reference={reference(CASE, tmp_path)}", *options]
    run_here(*source, f"target={tmp_path / 'one'}")
    outcome = run(torchrun(3, *source, f"target={tmp_path / 'three'}"), tmp_path)
    assert outcome.status == 0, outcome.err
    assert len(hashes(tmp_path / "one")) > 3
    assert hashes(tmp_path / "three") == hashes(tmp_path / "one")
    assert "on 3 processes" in outcome.out


def test_a_damaged_file_is_said_once(tmp_path):
    """Whichever process looks at it."""
    source = unpacked(CASE, "td", tmp_path)
    (source / "iter_0000007" / "__1_0.distcp").unlink()
    outcome = run(
        torchrun(3, f"source={source}", f"reference={reference(CASE, tmp_path)}", "target=mm", "target_format=hf"),
        tmp_path,
    )
    assert outcome.status != 0
    assert not outcome.shows_its_inside
    assert outcome.told.count("__1_0.distcp: no such file") == 1
    assert not (tmp_path / "mm").exists()


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_several_processes_write_one_checkpoint(launcher, tmp_path):
    """Of a source whose layers and experts lie in several files."""
    source = unpacked(CASE, "mp", tmp_path)
    given = [f"source={source}", f"reference={reference(CASE, tmp_path)}", "target_format=torch_dist"]
    run_here(*given, f"target={tmp_path / 'one'}")
    for action in ("convert", "verify"):
        outcome = run(launcher(3, *given, f"target={tmp_path / 'three'}", f"action={action}"), tmp_path)
        assert outcome.status == 0, outcome.err
    assert {"metadata.json", "common.pt", ".metadata"} <= {path.name for path in (tmp_path / "one").glob("iter_*/*")}
    assert hashes(tmp_path / "three") == hashes(tmp_path / "one")


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """There and back; the larger checkpoint has thirty times what memory may grow by."""
    peaks: dict[str, list[int]] = {"torch_dist": [], "hf": []}
    for size in SIZES:
        source = tmp_path / str(size)
        stored = write_lookalike(source, size, as_type("bfloat16"))
        for target, found in peaks.items():
            given = (f"source={source}", f"target={tmp_path / target}", f"target_format={target}", "io.fsync=false")
            shares = shares_of_two(tmp_path, *given)
            assert sum(share["bytes_written"] for share in shares) == 2 * sum(
                prod(shape) for _, shape in stored.values()
            )
            found.append(peak(shares))
            source = tmp_path / target
    for found in peaks.values():
        assert_alike(*found)
