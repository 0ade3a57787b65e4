"""SIGTERM is like Ctrl-C, and what must be finished is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from distconv.errors import JobError, LostError
from distconv.runtime.interruption import end_politely, end_undisturbed, interruptions, undisturbed

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


def import_of_an_extension(number: signal.Signals) -> None:
    """What catches the interruption, and fails for want of what it was doing; nothing of it is in the error."""
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        failure = ImportError("partially initialised")
    raise failure


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_that_was_caught_is_one(number):
    with pytest.raises(KeyboardInterrupt), interruptions():
        import_of_an_extension(number)


@pytest.mark.parametrize("error", [JobError("disk full"), LostError("rank 1 is lost"), ImportError("no such module")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), interruptions():
        raise error


def test_the_loss_of_another_process_is_one_though_this_one_is_asked_to_end():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(LostError), interruptions():
        raise LostError("rank 1 is lost")


def test_a_signal_that_was_ignored_before_is_still():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_politely()
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_who_has_said_how_it_ends_is_not_interrupted(number):
    end_undisturbed()
    os.kill(os.getpid(), number)
