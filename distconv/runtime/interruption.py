"""Interruption: SIGTERM, which launchers send, has the effect of Ctrl-C, and neither cuts in two what must stay whole.

Owns the signal handlers of the process. Sets none when it is imported.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class EndOfWatchError(KeyboardInterrupt):
    """The interruption that work without an end waits for; `exit_status` is that of the program."""

    def __init__(self, exit_status: int) -> None:
        super().__init__()
        self.exit_status = exit_status


def end_politely() -> None:
    """Let the next SIGTERM raise `KeyboardInterrupt`, so that a job leaves what is true; later ones are ignored."""
    signal.signal(signal.SIGTERM, _interrupt)


def end_as_signalled() -> None:
    """End this process as SIGTERM ends one that has no handler.

    For one that the others do not know yet: a launcher of MPI ends them for a process that a signal ended, but not for
    one that left with a status before it joined, and they would wait for it for ever. What was said must be flushed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGTERM and SIGINT back inside the context, for work that must be finished; SIGKILL still ends the process.

    A signal that came meanwhile is raised at the end, unless the work failed.

    Raises:
        KeyboardInterrupt: such a signal, where it interrupts.
    """
    came: list[int] = []
    handlers = [signal.signal(number, lambda number, _: came.append(number)) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _interrupt(*_: object) -> NoReturn:
    # Once is enough: launchers and batch systems may both ask, and this process is ending by then.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an interruption is the error, or among its causes, such as of a file that could not be closed then."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
