"""Who is silent for too long, by a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distconv.runtime.progress import Beat
from distconv.runtime.watch import Watch


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def beat(steps: int, doing: str = "writing", places: tuple[str, ...] = ("/a", "/b")) -> Beat:
    return Beat(host="node7", steps=steps, doing=doing, places=places)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock) -> Watch:
    return Watch([1, 2], 600, clock)


def look(watch: Watch, clock: Clock, seconds: float) -> list[int]:
    """Look so often as one should, for so many seconds."""
    found: list[int] = []
    for _ in range(round(seconds / watch.seconds_between_looks)):
        clock.now += watch.seconds_between_looks
        found = watch.look()
    return found


def test_patience_counts_from_the_last_step(watch, clock):
    watch.hear(1, beat(1))
    watch.hear(2, beat(1))
    assert look(watch, clock, 500) == []
    watch.hear(1, beat(2))
    assert look(watch, clock, 600) == [2]
    assert look(watch, clock, 5) == [1, 2]


def test_a_beat_without_progress_is_no_sign_of_life(watch, clock):
    watch.hear(2, beat(1))
    for _ in range(121):
        watch.hear(1, beat(7))
        watch.hear(2, beat(int(clock.now)))
        look(watch, clock, 5)
    assert watch.look() == [1]


def test_who_is_slow_but_moves_is_never_silent(watch, clock):
    watch.forget(2)
    for step in range(100):
        watch.hear(1, beat(step))
        assert look(watch, clock, 590) == []


def test_a_watcher_that_was_stopped_itself_has_lost_nobody(watch, clock):
    """As when a batch system suspends a whole job, and continues it hours later."""
    for rank in (1, 2):
        watch.hear(rank, beat(1))
    look(watch, clock, 100)
    clock.now += 10_000
    assert watch.look() == []
    assert look(watch, clock, 400) == []
    assert look(watch, clock, 100) == [1, 2]


def test_a_process_has_time_to_come(clock):
    watch = Watch([1], 2, clock)
    assert look(watch, clock, 59) == []
    assert look(watch, clock, 2) == [1]
    assert watch.sentence([1]).startswith("rank 1: not heard of in 60 s; ")
    watch.hear(1, beat(1))
    assert look(watch, clock, 1.9) == []
    assert look(watch, clock, 0.2) == [1]


def test_without_patience_everybody_waits_for_ever(clock):
    watch = Watch([1], 0, clock)
    watch.hear(1, beat(1))
    assert look(watch, clock, 10**6) == []


def test_who_has_left_may_be_silent(watch, clock):
    watch.hear(2, beat(1))
    watch.forget(1)
    assert look(watch, clock, 605) == [2]
    assert watch.ranks == [2]


def test_the_sentence_says_who_where_and_what(watch):
    watch.hear(1, beat(1))
    assert watch.sentence([1]).startswith(
        "rank 1 on node7: no progress in 600 s; it was last seen writing: /a to /b; the process, its host or a file "
    )
    watch.hear(2, beat(1, "planning", ()))
    assert "rank 2 on node7: no progress in 600 s; it was last seen planning; " in watch.sentence([1, 2])


@pytest.mark.parametrize(("patience", "seconds"), [(600, 5), (7 * 86400, 5), (20, 1), (1, 0.1), (0, 5)])
def test_looks_are_cheap_and_often_enough(patience, seconds, clock):
    assert Watch([], patience, clock).seconds_between_looks == seconds


def test_a_call_without_an_answer_is_for_rank_0(clock):
    assert Watch([0], 5, clock).no_answer().startswith("rank 0: not heard of in 60 s; ")
    assert Watch([1, 2], 5, clock).no_answer().startswith("no answer from the other processes in 5 s; ")


def test_what_others_have_moved_in_a_phase_is_added_up(watch):
    assert watch.moved(0) == 0
    for rank, number, moved in ((1, 4, 10), (2, 4, 20)):
        watch.hear(rank, replace(beat(1), number=number, moved=moved))
    assert (watch.moved(4), watch.moved(5)) == (30, 0)
    # One that is in the phase before has done nothing of this one.
    watch.hear(1, replace(beat(2), number=5, moved=1))
    assert (watch.moved(4), watch.moved(5)) == (20, 1)
    watch.forget(1)
    assert watch.moved(5) == 1
