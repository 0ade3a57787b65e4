"""What README.md shows: its blocks, the commands among them, and the checkpoint that most of them are about."""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path

from benchmarks.synthetic import Qwen2VLDimensions, hugging_face_config, qwen2vl_tensors
from tests import documents
from tests.checkpoints import write_safetensors

README = documents.text_of("README.md")


def blocks(language: str) -> list[str]:
    return documents.blocks(README, language)


def commands() -> list[str]:
    return documents.commands(README)


# The layers and head counts of the 7B that the commands name, with the least widths that have them.
DIMENSIONS = Qwen2VLDimensions(
    layers=28, hidden=56, heads=28, kv_groups=4, intermediate=32, vocab=64, tied=False,
    vision_layers=32, vision_width=32, vision_heads=16,
)  # fmt: skip


def write_qwen2vl(directory: Path) -> None:
    """Write a checkpoint that stands for Qwen2-VL-7B."""
    directory.mkdir()
    tensors = {
        name: ("bfloat16", list(shape), os.urandom(2 * prod(shape)))
        for name, shape in qwen2vl_tensors(DIMENSIONS).items()
    }
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(hugging_face_config(DIMENSIONS)))
