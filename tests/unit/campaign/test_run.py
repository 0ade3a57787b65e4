"""The jobs of several sources in turn, with jobs that only say what they were called with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distconv.campaign import run as module
from distconv.campaign.run import run
from distconv.errors import InputError, JobError, LostError, UnfinishedError
from distconv.models.library import Library
from distconv.observer import Observer, Outcome
from distconv.runtime.interruption import EndOfWatchError
from distconv.runtime.processes import SingleProcess
from tests.configuration import job
from tests.unit.threads import as_processes

TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture(autouse=True)
def training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        os.makedirs(f"run/iter_{number:07d}")


class Told(Observer):
    def __init__(self) -> None:
        self.report: Any = None

    def all_ended(self, report):
        self.report = report


def campaign(processes=None, observer=None, **options) -> Outcome:
    given = job(**{"source": None, "sources": "run/iter_*", "target": "hf/{name}", **options})
    return run(given, None, Library.of_package(), processes or SingleProcess(), observer or Observer())


@pytest.fixture
def jobs(monkeypatch) -> Callable[..., list[Any]]:
    """Have every job do this; the sources and the numbers of processes of those that were run."""

    def doing(what: Callable[[str], Outcome]) -> list[Any]:
        ran: list[Any] = []

        def run_job(options, chosen, library, processes, observer, *, skip_done):  # noqa: ARG001 - as it is called
            assert skip_done
            ran.append((options.source.name, processes.size))
            return what(options.source.name)

        monkeypatch.setattr(module, "run_job", run_job)
        return ran

    return doing


def done(_: str) -> Outcome:
    return Outcome(report={})


def failing(with_what: Exception) -> Callable[[str], Outcome]:
    """The second one fails."""

    def convert(name: str) -> Outcome:
        if name == "iter_0000002":
            raise with_what
        return Outcome(report={})

    return convert


@pytest.mark.parametrize("error", [InputError("wrong"), JobError("no room")])
def test_a_failure_does_not_keep_the_rest_from_running(error, jobs):
    ran = jobs(failing(error))
    with pytest.raises(UnfinishedError) as caught:
        campaign()
    assert [name for name, _ in ran] == ["iter_0000001", "iter_0000002", "iter_0000003"]
    assert [each["outcome"] for each in caught.value.report["checkpoints"]] == ["done", "failed", "done"]
    assert caught.value.exit_status == 1


def test_with_a_process_that_is_lost_nothing_goes_on(jobs):
    ran = jobs(failing(LostError("rank 1")))
    with pytest.raises(LostError):
        campaign()
    assert len(ran) == 2


@pytest.mark.parametrize(("action", "size"), [("convert", 1), ("verify", 1), ("plan", 2)])
def test_what_moves_bytes_is_divided_among_processes(action, size, jobs):
    ran = jobs(done)
    shutil.rmtree("run/iter_0000003")
    as_processes(2, lambda processes: campaign(processes, action=action))
    # Each by as many as it is told that there are.
    assert sorted(ran) == [(f"iter_000000{number}", size) for number in (1, 2) for _ in range(size)]


def at_each_pause(monkeypatch, *events: Callable[[], object]) -> None:
    """What happens while a watch waits; after that it is interrupted."""
    left = list(events)

    def sleep(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))


def named(number: int) -> Callable[[], object]:
    return lambda: Path("run", TRACKER).write_text(f"{number}")


def test_what_failed_is_not_tried_again_by_the_same_watch(jobs, monkeypatch):
    ran = jobs(failing(JobError("no room")))
    at_each_pause(monkeypatch, named(1), named(2), lambda: None, named(3), lambda: None)
    told = Told()
    with pytest.raises(EndOfWatchError) as caught:
        campaign(observer=told, watch=True)
    assert [name for name, _ in ran] == ["iter_0000001", "iter_0000002", "iter_0000003"]
    assert [each["outcome"] for each in told.report["checkpoints"]] == ["done", "failed", "done"]
    assert caught.value.exit_status == 1
    with pytest.raises(EndOfWatchError):
        campaign(watch=True)
    assert [name for name, _ in ran[3:]] == ["iter_0000001", "iter_0000002", "iter_0000003"]


@pytest.mark.parametrize("number", [0, 3])
def test_a_watch_in_which_nothing_failed_ends_well(number, jobs, monkeypatch):
    ran = jobs(done)
    at_each_pause(monkeypatch, named(number))
    with pytest.raises(EndOfWatchError) as caught:
        campaign(watch=True)
    assert caught.value.exit_status == 0
    assert len(ran) == number


def test_an_interrupted_job_is_not_in_the_table(jobs):
    def interrupted(name: str) -> Outcome:
        if name == "iter_0000002":
            raise KeyboardInterrupt
        return Outcome(report={})

    jobs(interrupted)
    named(3)()
    told = Told()
    with pytest.raises(EndOfWatchError) as caught:
        campaign(observer=told, watch=True)
    assert [each["source"] for each in told.report["checkpoints"]] == ["run/iter_0000001"]
    assert caught.value.exit_status == 0


def test_a_watch_runs_each_on_all_processes(jobs, monkeypatch):
    """So that its table is true whenever it is interrupted."""
    ran = jobs(done)
    named(2)()
    at_each_pause(monkeypatch)

    def watch(processes):
        with pytest.raises(EndOfWatchError) as caught:
            campaign(processes, watch=True)
        return caught.value.exit_status

    assert as_processes(2, watch) == [0, 0]
    assert sorted(ran) == [("iter_0000001", 2)] * 2 + [("iter_0000002", 2)] * 2
