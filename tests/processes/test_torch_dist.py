"""torch_dist checkpoints that several processes read or write together: the bytes of one process, and one voice."""

from __future__ import annotations

import pytest

from tests.checkpoints import hashes
from tests.golden.samples import reference, unpacked
from tests.here import run_here
from tests.processes.jobs import mpirun, run, torchrun

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
    assert outcome.err.count("__1_0.distcp: no such file") == 1
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
