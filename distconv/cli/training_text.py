"""The lines of a training's configuration, as text to paste. Owns only their form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def training_lines(training: Mapping[str, Any] | None) -> list[str]:
    """What the training that loads a result is configured with; nothing for a result without a layout."""
    if training is None:
        return []
    lines = ["", "flags of the training that loads it", *(f"  {flag}" for flag in training["flags"])]
    stages = [f'  "{key}": {json.dumps(value)}' for key, value in training["model_file"].items()]
    return [*lines, "and in its model file", *stages] if stages else lines
