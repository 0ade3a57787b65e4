"""Buffers smaller than an option can make them, so that little data fills several."""

from __future__ import annotations

from dataclasses import dataclass

from distconv.options import InputOutput


@dataclass(frozen=True, kw_only=True)
class SmallBuffers(InputOutput):
    """`buffer_bytes` is given in bytes."""

    buffer_bytes: int = 4096
