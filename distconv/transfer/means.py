"""What a process moves bytes with, whether it writes them or compares them.

Owns the record, so that whoever produces something names one thing instead of four. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distconv.options import InputOutput
from distconv.transfer.engine import Work, run
from distconv.transfer.sinks import Counters, Sink
from distconv.transfer.sources import SourceFiles


@dataclass(frozen=True, kw_only=True)
class Means:
    """The options of reading and writing, the counters, and the open source files of a process.

    `must_stop`: whether another process has failed; called about twice a second.
    """

    io: InputOutput
    counters: Counters
    sources: SourceFiles
    must_stop: Callable[[], bool]

    def produce(self, work: Sequence[Work], sink: Sink) -> None:
        """Produce shards for a sink, as `engine.run`, which says the errors."""
        run(
            work,
            sink,
            self.sources,
            self.counters,
            threads=self.io.threads,
            buffer_bytes=self.io.buffer_bytes,
            must_stop=self.must_stop,
        )
