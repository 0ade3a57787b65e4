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


@pytest.mark.parametrize("number", SIGNALS)
def test_what_must_be_finished_is_not_interrupted(number):
    finished = False
    with undisturbed():
        os.kill(os.getpid(), number)
        finished = True
    assert finished
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_handlers_come_back_also_after_a_failure():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(JobError), undisturbed():
        raise JobError("disk full")
    assert [signal.getsignal(number) for number in SIGNALS] == before
