"""The thread that speaks with the others: its calls, its beats, and what becomes of a loss."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from distconv.errors import LostError
from distconv.runtime.clerk import Clerk
from distconv.runtime.progress import Beat, Progress
from distconv.runtime.watch import Watch

SILENT = Beat(host="node7", steps=1, doing="writing", places=("/a",))
LIMIT = 20


@pytest.fixture
def watch() -> Watch:
    return Watch([1], 0.3)


@pytest.fixture
def clerk(watch) -> Iterator[Clerk]:
    found = Clerk(Progress(), watch, lambda error: f"broken: {error}")
    yield found
    found.stop()


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, or fail."""
    pause = threading.Event()
    for _ in range(LIMIT * 50):
        if condition():
            return
        pause.wait(0.02)
    pytest.fail("never came")


def lost(clerk: Clerk) -> str:
    found: list[str] = []

    def is_lost() -> bool:
        try:
            clerk.check()
        except LostError as error:
            found.append(str(error))
        return bool(found)

    until(is_lost)
    return found[0]


def test_answers_and_errors_come_from_its_thread(clerk):
    assert clerk.ask(lambda: threading.current_thread().name) == "clerk"
    with pytest.raises(ZeroDivisionError):
        clerk.ask(lambda: 1 // 0)

    def gone() -> None:
        raise RuntimeError("connection reset")

    with pytest.raises(LostError, match=r"^broken: connection reset$"):
        clerk.ask(gone)
    assert clerk.ask(lambda: 1) == 1


def test_without_a_thread_calls_are_made_at_once(watch):
    clerk = Clerk(Progress(), watch, str, thread=False)
    assert clerk.ask(threading.current_thread) is threading.current_thread()
    assert clerk.wait(lambda: True)
    clerk.stop()


def test_who_is_silent_ends_every_wait(clerk, watch):
    watch.hear(1, SILENT)
    clerk.begin_to_beat(lambda: watch.hear(1, SILENT))
    with pytest.raises(LostError, match=r"^rank 1 on node7: no progress in 0\.3 s; it was last seen writing: /a; "):
        clerk.wait(lambda: False)


def test_a_call_that_gets_no_answer_is_a_loss(clerk):
    answer = threading.Event()
    try:
        with pytest.raises(LostError, match=r"^no answer from the other processes in 0\.3 s; "):
            clerk.ask(lambda: answer.wait(LIMIT))
    finally:
        answer.set()


def test_whoever_leaves_misses_nobody(clerk, watch):
    watch.hear(1, SILENT)
    clerk.begin_to_beat(lambda: None)
    lost(clerk)
    clerk.leave()
    clerk.check()
    assert not clerk.wait(lambda: False, 0.1)


def test_a_loss_of_which_nobody_takes_notice(clerk, watch):
    told: list[str] = []
    watch.hear(1, SILENT)
    clerk.end_if_stuck(told.append)
    clerk.begin_to_beat(lambda: None)
    sentence = lost(clerk)
    assert told == []
    until(lambda: bool(told))
    assert told[0] == sentence


def test_a_beat_that_fails_leaves_no_call_without_an_answer(clerk):
    def beat() -> None:
        raise ValueError("no JSON")

    clerk.begin_to_beat(beat)
    assert lost(clerk) == "broken: no JSON"
    assert clerk.ask(lambda: 1) == 1


@pytest.mark.parametrize("told", [True, False])
def test_the_lowest_that_lives_tells(told, clerk):
    assert clerk.is_first_to_tell(0, lambda: told) is not told
