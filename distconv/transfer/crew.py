"""The crew: the threads of a process that produce shards, given their work in portions.

Owns the threads, and when they stop. Who gives a portion may do what comes before the next one, such as to lay out its
files, and what comes after the last one, while the threads are busy. What a thread does is the business of `engine`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import TracebackType

from distconv.errors import LostError, StoppedError
from distconv.tensors.stored import position
from distconv.transfer.buffers import Buffers
from distconv.transfer.engine import Engine, Task, Work, tasks_of
from distconv.transfer.pace import Pace
from distconv.transfer.sinks import Counters, Sink
from distconv.transfer.sources import SourceFiles

_ALARM_SECONDS = 0.5
# How long threads may take to stop, where nobody waits for them for ever.
_FAREWELL_SECONDS = 5


@dataclass(kw_only=True, eq=False)
class Portion:
    """Work that was given at a time: the tasks that no thread has, and how many are under way."""

    tasks: Iterator[Task]
    sink: Sink
    under_way: int = 0
    is_given_out: bool = False

    @property
    def is_done(self) -> bool:
        """Whether all of its shards are produced."""
        return self.is_given_out and not self.under_way


class Crew:
    """Threads inside the context, at most as many as there are buffers for; they take up portions in the given order.

    `must_stop` is called about twice a second while a portion is waited for. When the context is left with an error,
    the threads have stopped; those that hang are left alone if another process is lost: they may never return.
    """

    def __init__(
        self, sources: SourceFiles, counters: Counters, *, buffers: Buffers, must_stop: Callable[[], bool]
    ) -> None:
        self._sources = sources
        self._counters = counters
        self._buffers = buffers
        self._must_stop = must_stop
        self._portions: deque[Portion] = deque()
        self._changed = threading.Condition()
        self._is_complete = False
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._pace = Pace(buffers.lanes)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Crew:
        with self._changed:
            self._grow()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._is_complete = True
            if error is not None:
                self._stop.set()
            self._changed.notify_all()
        self._join(_FAREWELL_SECONDS if isinstance(error, LostError) else None)

    def begin(self, work: Sequence[Work], sink: Sink) -> Portion:
        """Give a portion of work, whose bytes go to `sink`; the threads begin when those before it are given out."""
        ordered = sorted(work, key=lambda each: position(each.sources))
        tasks = chain.from_iterable(tasks_of(each, self._buffers) for each in ordered)
        portion = Portion(tasks=tasks, sink=sink)
        with self._changed:
            self._portions.append(portion)
            self._changed.notify_all()
        return portion

    def wait(self, portion: Portion) -> None:
        """Wait until all shards of a portion are produced.

        Raises:
            JobError: a read or a write failed, of this portion or another; the message names the file.
            StoppedError: `must_stop` returned true.
            LostError: `must_stop` raised it.
        """
        self._counters.progress.leave()
        while not self._is_over(portion):
            if self._must_stop():
                self._halt()
        if self._stop.is_set():
            self._join(None)
            # The first one stopped the others, unless another process did.
            raise next(iter(self._failures), StoppedError("stopped because another process failed"))

    def _is_over(self, portion: Portion) -> bool:
        """Whether a portion is done, or will never be; waits for that, but not for long."""
        with self._changed:
            return self._changed.wait_for(lambda: portion.is_done or self._stop.is_set(), _ALARM_SECONDS)

    def _grow(self) -> None:
        """Start the threads that there are to be by now, and are not."""
        while len(self._threads) < self._pace.threads and not self._is_complete:
            # One that hangs does not keep the process from ending.
            thread = threading.Thread(target=self._work, name=f"transfer-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system allows no more; those that there are do the work.
                if not self._threads:
                    raise
                return
            self._threads.append(thread)

    def _halt(self) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()

    def _join(self, seconds: float | None) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(end - time.monotonic(), 0))

    def _work(self) -> None:
        """The life of a thread."""
        engine: Engine | None = None
        try:
            while (found := self._next()) is not None:
                portion, task = found
                if engine is None or engine.sink is not portion.sink:
                    engine = Engine(portion.sink, self._sources, self._counters, self._buffers, self._stop)
                engine.do(task)
                self._end(portion)
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            self._failures.append(error)
            self._halt()
        finally:
            self._counters.progress.leave()

    def _next(self) -> tuple[Portion, Task] | None:
        """The next task, when there is one; nothing if there will be none, or the thread is to stop."""
        with self._changed:
            while not self._stop.is_set():
                if self._portions:
                    portion = self._portions[0]
                    if (task := next(portion.tasks, None)) is not None:
                        portion.under_way += 1
                        return portion, task
                    self._portions.popleft()
                    portion.is_given_out = True
                    self._changed.notify_all()
                elif self._is_complete:
                    return None
                else:
                    # Who waits for work is at no file, and not the one that hangs.
                    self._counters.progress.leave()
                    self._changed.wait()
            return None

    def _end(self, portion: Portion) -> None:
        with self._changed:
            portion.under_way -= 1
            self._pace.learn(importing=self._counters.is_importing)
            self._grow()
            if portion.is_done:
                self._changed.notify_all()
