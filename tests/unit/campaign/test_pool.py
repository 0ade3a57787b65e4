"""Which checkpoints are converted side by side, by which process, and what every process hears of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distconv.campaign.names import Checkpoint
from distconv.campaign.outcomes import DONE, FAILED, Ended
from distconv.campaign.pool import run_small, shares, size_of
from distconv.errors import JobError, LostError
from distconv.observer import Observer, Outcome
from tests.unit.threads import PATIENCE_SECONDS, as_processes

MIB = 1024**2


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([50] * 4, 2, [[0, 2], [1, 3]]),
        ([10, 90, 20, 60, 10], 2, [[1, 4], [0, 2, 3]]),
        ([50, 5000, 50], 2, [[0], [2]]),
        ([512, 512], 2, [[0], [1]]),
        ([513, 513], 2, [[], []]),
        ([0, 0], 2, [[0], [1]]),
        ([], 2, [[], []]),
    ],
)
def test_small_ones_are_shared_by_bytes(sizes, count, expected):
    assert shares([size * MIB for size in sizes], count) == expected


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([50], 2, [[], []]),
        ([100, 1, 1], 3, [[], [], []]),
        ([100, 1, 1, 1], 3, [[1], [2], [3]]),
        ([50] * 9, 8, [[number] for number in range(1, 9)]),
        ([50] * 10, 8, [[number] for number in range(2, 10)]),
        ([30, 20, 10], 2, [[0], [1, 2]]),
    ],
)
def test_what_would_keep_processes_waiting_is_for_all_of_them(sizes, count, expected):
    assert shares([size * MIB for size in sizes], count) == expected


def test_the_size_is_that_of_all_files_below(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/x").write_bytes(bytes(5))
    (tmp_path / "a/b/y").write_bytes(bytes(7))
    (tmp_path / "a/link").symlink_to("b/y")
    (tmp_path / "a/gone").symlink_to("nowhere")
    assert size_of(tmp_path / "a") == 19
    assert size_of(tmp_path / "none") == 0


class Heard(Observer):
    """What an observer is told, in order."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def checkpoint(self, *of_which):
        self.said.append(of_which[2:])

    def note(self, text):
        self.said.append(text)

    def ended(self, outcome, why):
        self.said.append(why if outcome is None else outcome.report["by"])


def jobs(count):
    return [Checkpoint(source=f"s{each}", target=f"t{each}", reference=None, report=None) for each in range(count)]


def convert(job, processes, observer):
    """The second one fails."""
    assert (processes.rank, processes.size) == (0, 1)
    observer.note(f"about {job.source}")
    if job.source == "s1":
        return Ended(checkpoint=job, outcome=FAILED, why="no such file")
    return Ended(checkpoint=job, outcome=DONE, done=Outcome(report={"by": processes.world_rank}))


def test_sizes_are_those_of_the_sources(tmp_path, monkeypatch):
    """Whoever has measured them."""
    monkeypatch.chdir(tmp_path)
    for number, nbytes in enumerate([10, 40, 10, 10, 10]):
        Path(f"s{number}").mkdir()
        Path(f"s{number}/x").write_bytes(bytes(nbytes))
    outcomes = as_processes(2, lambda processes: run_small(jobs(5), processes, Heard(), convert_all))
    for ended in outcomes:
        assert [each.done.report["by"] for each in ended.values()] == [1, 0, 1, 1, 1]


def convert_all(job, processes, _):
    return Ended(checkpoint=job, outcome=DONE, done=Outcome(report={"by": processes.world_rank}))


def test_each_is_one_process_s_and_rank_0_hears_all_of_them_on_every_process():
    def run(processes):
        heard = Heard()
        ended = run_small(jobs(4), processes, heard, convert)
        return heard.said, ended

    (first, ended), (second, same) = as_processes(2, run)
    assert ended == same
    assert [(number, each.checkpoint.source, each.outcome) for number, each in ended.items()] == [
        (0, "s0", DONE),
        (1, "s1", FAILED),
        (2, "s2", DONE),
        (3, "s3", DONE),
    ]
    assert first == [
        *((1, 4), "about s0", 0),
        *((3, 4), "about s2", 0),
        *((2, 4), "about s1", "no such file"),
        *((4, 4), "about s3", 1),
    ]
    assert second == [(2, 4), "no such file", (4, 4), 1, (1, 4), 0, (3, 4), 0]


def test_notes_are_told_by_rank_0_alone():
    def run(processes):
        heard = Heard()
        run_small(jobs(3), processes, heard, convert)
        return [each for each in heard.said if str(each).startswith("about")]

    assert as_processes(3, run) == [["about s0", "about s1", "about s2"], [], []]


def test_the_others_watch_the_progress_of_who_works_alone():
    def run(processes):
        def run_one(job, alone, _):
            assert alone.progress is processes.progress
            return Ended(checkpoint=job, outcome=DONE)

        return run_small(jobs(2), processes, Heard(), run_one)

    assert [list(each) for each in as_processes(2, run)] == [[0, 1], [0, 1]]


def test_one_process_or_one_checkpoint_is_not_divided():
    assert as_processes(1, lambda processes: run_small(jobs(4), processes, Heard(), convert)) == [{}]
    assert as_processes(2, lambda processes: run_small(jobs(1), processes, Heard(), convert)) == [{}, {}]


def test_a_defect_ends_all_and_stops_those_that_work():
    """As a process that is lost does."""
    begun, both = [], threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def run_one(job, processes, _):
        begun.append(job.source)
        both.wait()
        if job.source == "s0":
            raise ValueError(job.source)
        end = time.monotonic() + 2 * PATIENCE_SECONDS
        while not processes.alarmed() and time.monotonic() < end:
            time.sleep(0.01)
        return Ended(checkpoint=job, outcome=FAILED, why="stopped")

    for error in as_processes(2, lambda processes: run_small(jobs(4), processes, Heard(), run_one)):
        assert isinstance(error, JobError)
        assert "rank 0 on " in str(error)
    assert sorted(begun) == ["s0", "s1"]


def test_a_loss_is_no_failure_of_a_checkpoint():
    def run_one(*_):
        raise LostError("rank 1 on x: no progress")

    assert all(
        isinstance(error, LostError)
        for error in as_processes(2, lambda processes: run_small(jobs(2), processes, Heard(), run_one))
    )
