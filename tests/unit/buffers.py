"""Buffers smaller than an option can make them, so that little data fills several."""

from __future__ import annotations

from distconv.runtime.lanes import Lanes
from distconv.transfer.buffers import Buffers


def small_lanes(threads: int, buffer_bytes: int) -> Lanes:
    """Lanes with buffers of a size in bytes."""
    return Lanes(threads=threads, buffer_bytes=buffer_bytes, large_bytes=buffer_bytes)


def small_buffers(threads: int, buffer_bytes: int = 4096) -> Buffers:
    """The same, allocated."""
    return Buffers(small_lanes(threads, buffer_bytes))
