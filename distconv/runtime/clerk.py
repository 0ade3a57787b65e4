"""The thread that speaks with the other processes, so that the one that works never hangs in a call to them.

Owns that all calls are made by one thread, one after the other; that a call which gets no answer, or whose connection
breaks, is a `LostError`; and that every wait ends when a watched process is lost. What is said, and by which means,
`store_processes` and `mpi_processes` know.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from distconv.errors import LostError
from distconv.runtime.progress import Progress
from distconv.runtime.watch import Watch

Value = TypeVar("Value")

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1
# How long somebody who leaves waits for an answer.
FAREWELL_SECONDS = 10.0
_STOP_SECONDS = 2.0
# How much longer the next rank waits for a lower one to tell of a loss, and the longest such wait.
_TURN_SECONDS, _LONGEST_TURN_SECONDS = 2.0, 10.0


class Clerk:
    """Makes calls, and between them beats: `beat` publishes the progress and takes up that of watched processes.

    `broken`: the sentence about an error of a call. Without a `thread`, because the means of the calls allow none,
    calls are made at once, and there is no beat.
    """

    def __init__(
        self, progress: Progress, watch: Watch, broken: Callable[[Exception], str], *, thread: bool = True
    ) -> None:
        self._progress, self._watch, self._broken = progress, watch, broken
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._beat: Callable[[], None] | None = None
        self._lost: str | None = None
        self._leaves = False
        self._end: Callable[[str], None] | None = None
        self._unheard = watch.silence()
        self._thread = threading.Thread(target=self._serve, name="clerk", daemon=True) if thread else None
        if self._thread is not None:
            self._thread.start()

    def check(self) -> None:
        """Raise `LostError` if a watched process is lost."""
        if self._lost is not None and not self._leaves:
            raise LostError(self._lost)

    def begin_to_beat(self, beat: Callable[[], None]) -> None:
        """Beat from now on."""
        self._beat = beat

    def end_if_stuck(self, end: Callable[[str], None]) -> None:
        """Call `end` with the sentence about a loss of which nobody takes notice while patience lasts once more."""
        self._end = end

    def ask(self, call: Callable[[], Value]) -> Value:
        """Make a call, and wait for its answer.

        Raises:
            LostError: no answer came for as long as the patience lasts, or the connection is broken.
        """
        reply: Future[Value] = Future()
        if self._thread is None:
            self._answer(call, reply)
            return reply.result()
        self._calls.put((call, reply))
        silence = self._watch.silence()
        # Not without an end: such a wait would not hear signals.
        while not wait([reply], _LONGEST_PAUSE).done:
            too_long = self._watch.is_too_long(silence)
            if too_long or (self._leaves and silence.seconds > FAREWELL_SECONDS):
                raise LostError(self._watch.no_answer())
        return reply.result()

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until a condition, a call, holds, or for so many seconds; whether it holds.

        Raises:
            LostError: as `ask`, or a watched process is lost.
        """
        end = None if seconds is None else time.monotonic() + seconds
        pause = _SHORTEST_PAUSE
        with self._progress.waiting():
            while not self.ask(condition):
                self.check()
                if end is not None and time.monotonic() > end:
                    return False
                self._progress.step()
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def is_first_to_tell(self, rank: int, is_told: Callable[[], bool]) -> bool:
        """Whether this process has to tell of the end: it waits a while for lower ranks, `is_told` being a call."""
        self.leave()
        try:
            return not self.wait(is_told, _seconds_to_turn(rank))
        except LostError:
            return True

    def leave(self) -> None:
        """From now on nobody is missed, and answers are not waited for for long."""
        self._leaves = True

    def stop(self) -> None:
        """End the thread, unless it hangs."""
        self._leaves = True
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(_STOP_SECONDS)

    def _serve(self) -> None:
        due = time.monotonic()
        while True:
            try:
                asked = self._calls.get(timeout=max(due - time.monotonic(), 0))
            except queue.Empty:
                due = time.monotonic() + self._watch.seconds_between_looks
                self._beat_once()
                continue
            if asked is None:
                return
            self._answer(*asked)

    def _answer(self, call: Callable[[], Any], reply: Future[Any]) -> None:
        try:
            reply.set_result(call())
        except RuntimeError as error:
            # As torch and mpi4py report what went wrong in their connections.
            lost = LostError(self._broken(error))
            lost.__cause__ = error
            reply.set_exception(lost)
        except Exception as error:  # noqa: BLE001 - it is raised again where the call was asked for
            reply.set_exception(error)

    def _beat_once(self) -> None:
        if self._beat is None or self._leaves or not self._watch.patience:
            return
        try:
            self._beat()
            silent = self._watch.look()
            self._lost = self._watch.sentence(silent) if silent else None
        except Exception as error:  # noqa: BLE001 - a thread that ends would leave every call without an answer
            self._lost = self._broken(error)
        if self._lost is None:
            self._unheard.end()
        elif self._end is not None and self._watch.is_too_long(self._unheard):
            self._end(self._lost)

    def wait_for_turn(self, rank: int) -> None:
        """Leave lower ranks the time to tell of a loss; called by the clerk itself."""
        time.sleep(_seconds_to_turn(rank))


def _seconds_to_turn(rank: int) -> float:
    return min(rank * _TURN_SECONDS, _LONGEST_TURN_SECONDS)
