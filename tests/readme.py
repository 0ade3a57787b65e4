"""What README.md shows: its blocks, the commands among them, and the checkpoint that most of them are about."""

from __future__ import annotations

import json
import os
import re
from math import prod
from pathlib import Path

from benchmarks.synthetic import Qwen2VLDimensions, hugging_face_config, qwen2vl_tensors
from tests.checkpoints import write_safetensors

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


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
