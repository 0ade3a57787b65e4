"""Interruption: SIGTERM, which launchers send, has the effect of Ctrl-C, and neither stops the removal of begun files.

Owns the signal handlers of the process. Sets none when it is imported.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_politely() -> None:
    """Let SIGTERM raise `KeyboardInterrupt` from now on, so that a job removes its unfinished files."""
    signal.signal(signal.SIGTERM, _interrupt)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGTERM and SIGINT inside the context, for work that must be finished; SIGKILL still ends the process."""
    handlers = [signal.signal(number, signal.SIG_IGN) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an interruption is the error, or among its causes, such as of a file that could not be closed then."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
