"""SIGTERM is like Ctrl-C, and what must be finished is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from distconv.errors import JobError
from distconv.runtime.interruption import end_politely, undisturbed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test sets is taken back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    end_politely()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_being_asked_to_end_interrupts(number):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_being_asked_again_does_not_disturb_the_end():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    with undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
    # Whoever sits at the keyboard may be impatient.
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def insist(number: signal.Signals, steps: list[str], error: JobError | None = None) -> None:
    """Two signals come while something is done that must be finished, and may fail."""
    with undisturbed():
        for step in ("first", "second"):
            os.kill(os.getpid(), number)
            steps.append(step)
        if error is not None:
            raise error


@pytest.mark.parametrize("number", SIGNALS)
def test_what_must_be_finished_is_not_interrupted(number):
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        insist(number, steps)
    assert steps == ["first", "second"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_failure_is_worth_more_than_a_signal_that_waited(number):
    with pytest.raises(JobError, match="disk full"):
        insist(number, [], JobError("disk full"))
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_a_signal_that_the_program_ignores_stays_ignored():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)


def test_handlers_come_back_also_after_a_failure():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(JobError), undisturbed():
        raise JobError("disk full")
    assert [signal.getsignal(number) for number in SIGNALS] == before
