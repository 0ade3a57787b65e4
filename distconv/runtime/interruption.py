"""Being asked to end: SIGTERM, as launchers send it, is like Ctrl-C, and neither disturbs cleaning up.

Owns the signal handlers of the process. Sets none when it is imported.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_politely() -> None:
    """From now on, SIGTERM raises `KeyboardInterrupt`, so that what has been begun is taken back."""
    signal.signal(signal.SIGTERM, _interrupt)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Do something that must be finished, such as removing what was begun; who insists can still kill the process."""
    handlers = [signal.signal(number, signal.SIG_IGN) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error came up while an interruption was on its way, as when what is closed then cannot be."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
