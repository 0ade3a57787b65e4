"""What a user says about the layout of a Megatron source: the keys of `source_layout.*`.

Owns the record alone: `config` checks the values, `detection` compares them with what the files say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distconv.layout import StageRows

VISION_QKV = ("heads", "fused")
# The operator of a fused qkv that the training side has by head, and once had as it is published.
FUSED_QKV = "qkv_heads"


@dataclass(frozen=True, kw_only=True)
class GivenLayout:
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
