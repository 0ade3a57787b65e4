"""What a process moves bytes with, whether it writes them or compares them.

Owns the record, so that whoever produces something names one thing instead of four. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distconv.input_output import InputOutput
from distconv.transfer.buffers import Buffers
from distconv.transfer.crew import Crew
from distconv.transfer.engine import Work
from distconv.transfer.sinks import Counters, Sink
from distconv.transfer.sources import SourceFiles


@dataclass(frozen=True, kw_only=True)
class Means:
    """The options of reading and writing, the counters, and the open source files of a process.

    `buffers`: those of the threads, which are also as many as work on files otherwise; `must_stop`: whether another
    process has failed; called about twice a second.
    """

    io: InputOutput
    counters: Counters
    sources: SourceFiles
    buffers: Buffers
    must_stop: Callable[[], bool]

    @property
    def threads(self) -> int:
        """The number of threads that work on files."""
        return self.buffers.lanes.threads

    def crew(self) -> Crew:
        """Threads for work that is given in portions."""
        return Crew(self.sources, self.counters, buffers=self.buffers, must_stop=self.must_stop)

    def produce(self, work: Sequence[Work], sink: Sink) -> None:
        """Produce shards for a sink; `Crew.wait` says the errors."""
        with self.crew() as crew:
            crew.wait(crew.begin(work, sink))
