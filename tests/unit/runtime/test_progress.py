"""What a process last did is what it really did."""

from __future__ import annotations

import json
import threading

import pytest

from distconv.runtime.hand_out import attempt_parts
from distconv.runtime.progress import Beat, Progress, finished, following, reached
from distconv.runtime.regular_files import read_file


@pytest.fixture
def progress() -> Progress:
    return Progress()


def test_nothing_moves_by_itself(progress):
    assert progress.beat() == progress.beat()


@pytest.mark.parametrize(
    "step",
    [
        lambda progress: progress.step(),
        lambda progress: progress.begin("writing"),
        lambda progress: progress.reach("/a"),
        lambda progress: progress.leave(),
    ],
)
def test_every_step_changes_the_beat(step, progress):
    before = progress.beat()
    step(progress)
    assert progress.beat() != before


def test_a_beat_goes_through_json(progress):
    progress.begin("writing")
    progress.reach("/a", "/b")
    beat = progress.beat()
    assert (beat.doing, beat.places) == ("writing", ("/a", "/b"))
    assert Beat.from_json(json.loads(json.dumps(beat.to_json()))) == beat


def test_of_several_threads_the_one_that_hangs_is_told(progress):
    def elsewhere(*places: str) -> None:
        thread = threading.Thread(target=lambda: progress.reach(*places))
        thread.start()
        thread.join()

    progress.reach("/hangs")
    for number in range(3):
        elsewhere(f"/moves/{number}")
    assert progress.beat().places == ("/hangs",)
    progress.leave()
    assert progress.beat().places != ("/hangs",)
    progress.begin("verifying")
    assert progress.beat().places == ()


def test_waiting_is_told_and_ends(progress):
    progress.begin("writing")
    progress.reach("/a")
    with progress.waiting():
        assert (progress.beat().doing, progress.beat().places) == ("waiting for the others", ())
    assert progress.beat().doing == "writing"


def test_files_that_are_opened_are_steps_of_the_job_that_opens_them(progress, tmp_path):
    (tmp_path / "a").write_text("")
    before = progress.beat()
    read_file(tmp_path / "a")
    assert progress.beat() == before
    with following(progress):
        read_file(tmp_path / "a")
    assert progress.beat().places == (str(tmp_path / "a"),)
    assert progress.beat().steps == before.steps + 1


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_are_steps_on_whatever_threads_they_run(threads, progress):
    before = progress.beat().steps
    seen = []

    def task(part: str) -> None:
        reached(part)
        seen.append(progress.beat().places)

    with following(progress):
        attempt_parts(task, ["/a", "/b", "/c", "/d"], threads)
        assert len(seen) == 4
        assert all(places for places in seen)
        assert progress.beat().places == ()
        assert progress.beat().steps >= before + 4
        finished()


def test_what_a_phase_has_moved_is_told_also_while_it_waits(progress):
    progress.begin_to_move(3)
    progress.move(5)
    progress.move(2)
    with progress.waiting():
        beat = Beat.from_json(json.loads(json.dumps(progress.beat().to_json())))
    assert (beat.number, beat.moved) == (3, 7)
    progress.begin("verifying")
    assert (progress.beat().number, progress.beat().moved) == (3, 7)
    progress.begin_to_move(4)
    assert (progress.beat().number, progress.beat().moved) == (4, 0)
