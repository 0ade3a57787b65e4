"""A job that dies in its commit loses nothing, says what is true, and the next one puts it right."""

from __future__ import annotations

import errno
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import load_case, write_source
from tests.processes import dying
from tests.processes.jobs import Outcome, run, single

OLD, TRACKER = "older weights", "latest_checkpointed_iteration.txt"
ARGUMENTS = ("+model=qwen2vl", "source=hf", "target=mm", "io.fsync=false")


@pytest.fixture
def directory(tmp_path) -> Path:
    write_source(tmp_path / "hf", load_case("qwen2vl__tp1_pp1"))
    return tmp_path


def older(directory: Path) -> None:
    """A result of an earlier job, and a tracker that training has moved on."""
    (directory / "mm" / "release").mkdir(parents=True)
    (directory / "mm" / "release" / "weights").write_text(OLD)
    (directory / "mm" / TRACKER).write_text("10")


def convert(directory: Path, *options: str, **how: Any) -> Outcome:
    if not how:
        return run(single(*ARGUMENTS, *options), directory)
    command = [sys.executable, dying.__file__, json.dumps({"exchange": True, **how}), *ARGUMENTS, *options]
    return run(command, directory)


def found(directory: Path) -> tuple[list[str], str | None]:
    """What is in the result, and what the tracker says; nothing else may be in the target."""
    target = directory / "mm"
    assert {path.name for path in target.iterdir()} <= {"release", TRACKER}
    tracker = target / TRACKER
    return sorted(path.name for path in target.glob("release/*")), tracker.read_text() if tracker.exists() else None


NEWER = (["distconv.json", "mp_rank_00"], "release")


@pytest.mark.parametrize(("exchange", "after"), [(True, 1), (False, 1)], ids=["exchange", "between"])
def test_asked_to_end_in_the_middle_of_a_commit(directory, exchange, after):
    """What cannot be cut in two is finished first."""
    older(directory)
    outcome = convert(directory, "overwrite=true", exchange=exchange, after=after, signal=signal.SIGTERM)
    assert outcome.status == 130
    assert outcome.err.endswith("distconv: interrupted; mm/release is in place and complete\n"), outcome.err
    assert found(directory) == NEWER


@pytest.mark.parametrize(
    ("exchange", "after"), [(True, 1), (False, 1), (False, 2)], ids=["exchange", "between", "renames"]
)
def test_killed_in_the_middle_of_a_commit(directory, exchange, after):
    older(directory)
    outcome = convert(directory, "overwrite=true", exchange=exchange, after=after, signal=signal.SIGKILL)
    assert outcome.status == -signal.SIGKILL
    assert [path.read_text() for path in (directory / "mm").rglob("weights")] == [OLD]

    refused = convert(directory, "action=verify")
    assert refused.status == 2
    assert "distconv: target=mm: a job was killed while it put release in place" in refused.err
    refused = convert(directory)
    assert refused.status == 2
    assert "note: a job was killed while it put " in refused.out
    assert "release is already there" in refused.err
    assert (directory / "mm" / "release" / "weights").read_text() == OLD
    assert (directory / "mm" / TRACKER).read_text() == "10"
    assert len(list((directory / "mm").glob(".distconv-*"))) == 1

    outcome = convert(directory, "overwrite=true")
    assert outcome.status == 0, outcome.err
    assert "of which 1 file" in outcome.out
    assert found(directory) == NEWER


def test_a_first_result_without_its_tracker_does_not_stand_in_the_way(directory):
    outcome = convert(directory, after=1, signal=signal.SIGKILL)
    assert outcome.status == -signal.SIGKILL
    assert (directory / "mm" / "release").exists()
    outcome = convert(directory)
    assert outcome.status == 0, outcome.err
    assert sorted(path.name for path in (directory / "mm" / "release").iterdir()) == NEWER[0]
    assert (directory / "mm" / TRACKER).read_text() == "release"


@pytest.mark.parametrize(("exchange", "after"), [(True, 1), (False, 0), (False, 1)])
def test_a_full_disk_in_the_middle_of_a_commit(directory, exchange, after):
    """Then nothing can be taken back, either."""
    older(directory)
    outcome = convert(directory, "overwrite=true", exchange=exchange, after=after, error=errno.ENOSPC)
    assert outcome.status == 1
    assert "distconv: mm/release: could not be put in place: No space left on device" in outcome.err
    assert not outcome.shows_its_inside
    weights = [path.read_text() for path in (directory / "mm").rglob("weights")]
    assert weights == [OLD]
    if after == 0:
        (work,) = (directory / "mm").glob(".distconv-*")
        assert f"{work.name} is left of a job that did not end, with 1 finished file" in outcome.out
        work.rename(directory / "aside")
        assert found(directory) == (["weights"], "10")
    else:
        assert "could neither be put in place nor be taken back: keep " in outcome.err
        assert convert(directory).status == 2
        assert (directory / "mm" / "release" / "weights").read_text() == OLD
        assert (directory / "mm" / TRACKER).read_text() == "10"
