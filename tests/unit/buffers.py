"""Buffers smaller than an option can make them, so that little data fills several, and threads that use them."""

from __future__ import annotations

from collections.abc import Sequence

from distconv.runtime.lanes import Lanes
from distconv.transfer.buffers import Buffers
from distconv.transfer.crew import Crew
from distconv.transfer.engine import Work
from distconv.transfer.sinks import Counters, Sink
from distconv.transfer.sources import SourceFiles


def small_lanes(threads: int, buffer_bytes: int) -> Lanes:
    """Lanes with buffers of a size in bytes."""
    return Lanes(
        threads=threads, buffer_bytes=buffer_bytes, large_bytes=buffer_bytes, threads_at_first=threads, cores=1
    )


def small_buffers(threads: int, buffer_bytes: int = 4096) -> Buffers:
    """The same, allocated."""
    return Buffers(small_lanes(threads, buffer_bytes))


def produce(work: Sequence[Work], sink: Sink, sources: SourceFiles, counters: Counters, buffers: Buffers) -> None:
    """Produce the shards of work as the only portion of a crew."""
    with Crew(sources, counters, buffers=buffers, must_stop=lambda: False) as crew:
        crew.wait(crew.begin(work, sink))
