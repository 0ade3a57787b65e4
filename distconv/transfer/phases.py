"""The phases of a job in which all its processes move or compare bytes.

Owns what a process keeps from one phase to the next: counters, source files that are open, and measurements. Decides
nothing of what a phase does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distconv.formats.records import OutputFile
from distconv.input_output import InputOutput
from distconv.observer import Everywhere, Observer
from distconv.runtime.agreement import on_all
from distconv.runtime.lanes import Lanes
from distconv.runtime.measurement import cpu_seconds, peak_resident_bytes
from distconv.runtime.processes import Processes
from distconv.tensors.stored import SourceFile
from distconv.transfer.buffers import Buffers
from distconv.transfer.means import Means
from distconv.transfer.overflow import Overflowed
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles


class Phases:
    """The phases of a job, as its observer is told of them; `looked_at` gives the files that it was planned with.

    `means`: what this process moves bytes with; `overflowed`: what all processes have counted, up to the last phase, of
    elements that casts made infinite.
    """

    def __init__(
        self,
        processes: Processes,
        observer: Observer,
        io: InputOutput,
        lanes: Lanes,
        looked_at: Callable[[], Iterable[SourceFile]],
        planning: float,
    ) -> None:
        """`planning` is the time in seconds that planning took."""
        self._processes, self._observer = processes, observer
        self._seconds = {"planning": planning}
        self._cpu_seconds: dict[str, float] = {}
        self.means = Means(
            io=io,
            counters=Counters(observer.advance, processes.progress),
            sources=SourceFiles(looked_at),
            buffers=Buffers(lanes),
            must_stop=processes.alarmed,
        )
        self.overflowed: Sequence[Overflowed] = ()

    def run(
        self,
        what: str,
        files: Sequence[OutputFile],
        nbytes: int,
        of_all: int,
        phase: Callable[[], Any],
        *,
        counted_as: str = "transfer",
    ) -> tuple[list[Any], list[Any]]:
        """Run a phase on every process; the values and the measurements of all processes.

        `files` are those of this process; `nbytes` is its share of the phase in bytes, of `of_all` bytes on all
        processes; `counted_as` the name of the phase in the measurements.

        Raises:
            DistconvError: the failure of any process, as the same error on every process.
        """
        start, cpu = time.monotonic(), cpu_seconds()
        imported_before = self.means.counters.import_seconds

        def begun() -> Any:
            self._processes.begin_to_move()
            everywhere = Everywhere(nbytes=of_all, elsewhere=self._processes.moved_elsewhere)
            self._observer.begin(what, nbytes, everywhere)
            return phase()

        def told(value: Any) -> dict[str, Any]:
            counters = self.means.counters
            imported = counters.import_seconds - imported_before
            self._seconds[counted_as] = time.monotonic() - start - imported
            self._cpu_seconds[counted_as] = cpu_seconds() - cpu
            if imported:
                self._seconds["importing"] = counters.import_seconds
            return {
                "value": value,
                "rank": self._processes.world_rank,
                "files": [file.path for file in files],
                "bytes_read": counters.read,
                "bytes_written": counters.written,
                "seconds": self._seconds,
                "cpu_seconds": self._cpu_seconds,
                "peak_bytes": peak_resident_bytes(),
                "overflowed": counters.overflowed,
            }

        is_complete = False
        try:
            _, outcomes = on_all(self._processes, begun, told, what)
            is_complete = True
            self.overflowed = [each.pop("overflowed") for each in outcomes]
            return [each.pop("value") for each in outcomes], outcomes
        finally:
            self._observer.end(is_complete=is_complete)

    def check_sources(self) -> None:
        """Compare again, on every process, what it looked at and what it read: a mix of two sources is no result.

        Raises:
            DistconvError: files that have changed, as the same error on every process.
        """
        sources, threads = self.means.sources, self.means.threads
        on_all(self._processes, lambda: sources.check(threads), lambda _: None, "comparing the source again")
