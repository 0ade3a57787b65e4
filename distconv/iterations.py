"""Directories that hold one iteration each, as Megatron and its DCP relatives have them, and the tracker beside them.

Owns these names. Formats: `megatron/training/checkpointing.py`; MindSpeed-MM keeps DCP in the same way.
"""

from __future__ import annotations

TRACKER_NAME = "latest_checkpointed_iteration.txt"
RELEASE = "release"
# What Megatron calls the meaning of a fused qkv; it refuses or reinterprets another one.
CHECKPOINT_VERSION = 3.0


def iteration_directory(iteration: str) -> str:
    """`release`, or `iter_` and seven digits."""
    return iteration if iteration == RELEASE else f"iter_{int(iteration):07d}"
