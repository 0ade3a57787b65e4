"""Layouts as users give them: the keys of `layout.*` for a target, and of `source_layout.*` for a source.

Owns the two records and their defaults. What is left open, `balance` chooses for a target, and the reader of a format
detects in a source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distconv.layout.layout import PLACEMENTS, StageRows

VISION_QKV = ("heads", "fused")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The keys of `layout.*` as the user gave them; `None` and missing entries are to be chosen."""

    tp: int = 1
    ep: int = 1
    pp: int | None = None
    vpp: int | None = None
    stages: Mapping[str, StageRows] = field(default_factory=dict)
    modality_tp: Mapping[str, int] = field(default_factory=dict)
    placement: str = PLACEMENTS[0]


@dataclass(frozen=True, kw_only=True)
class SourceLayout:
    """The keys of `source_layout.*` as the user gave them; `None` and missing entries are to be detected.

    `vision_qkv` says how a fused qkv of an encoder is stored: `heads`, by head, as training has it now, or `fused`, as
    `[q; k; v]`, as the converters of late 2025 left it.
    """

    tp: int | None = None
    ep: int | None = None
    pp: int | None = None
    vpp: int | None = None
    stages: Mapping[str, StageRows] = field(default_factory=dict)
    modality_tp: Mapping[str, int] = field(default_factory=dict)
    placement: str | None = None
    vision_qkv: str = VISION_QKV[0]
