"""Interruption: SIGTERM, which launchers send, has the effect of Ctrl-C, and neither cuts in two what must stay whole.

Owns the signal handlers of the process. Sets none when it is imported.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

from distconv.errors import LostError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class EndOfWatchError(KeyboardInterrupt):
    """The interruption that work without an end waits for; `exit_status` is that of the program."""

    def __init__(self, exit_status: int) -> None:
        super().__init__()
        self.exit_status = exit_status


def end_politely() -> None:
    """Let the next SIGTERM raise `KeyboardInterrupt`, so that a job leaves what is true; later ones are ignored.

    Of either signal it is known from then on that it came.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def end_undisturbed() -> None:
    """Ignore both signals for what is left of this process, which has said how it ends.

    While the interpreter ends, code of others runs, in which an interruption would be a traceback.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


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


def _interrupt(number: int, _: object) -> NoReturn:
    # Once is enough of the one: launchers and batch systems may both ask, and this process is ending by then.
    signal.signal(number, _ignore if number == signal.SIGTERM else _interrupt_again)
    raise KeyboardInterrupt


def _ignore(*_: object) -> None:
    """The handler of SIGTERM after the first."""


def _interrupt_again(*_: object) -> NoReturn:
    """The handler of SIGINT after the first: whoever sits at the keyboard may be impatient."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """Let an interruption be one, whatever error came of it, but the loss of another process.

    Whoever imports an extension of C, or closes a file, may catch it and fail in a way of its own.

    Raises:
        KeyboardInterrupt: instead of such an error.
    """
    try:
        yield
    except LostError:
        raise
    except Exception as error:
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        raise


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an interruption is among the causes of an error, or a signal came that `end_politely` awaits."""
    if any(signal.getsignal(number) in (_ignore, _interrupt_again) for number in _SIGNALS):
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
