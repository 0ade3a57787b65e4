"""Configurations of jobs: what `conf/config.yaml` says, with changes."""

from __future__ import annotations

import copy
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from distconv.formats.registry import Options


def content(**changes: Any) -> dict[str, Any]:
    """The composed configuration without a model, with some values changed; `layout__tp` is `layout.tp`."""
    result = copy.deepcopy(_defaults())
    for key, value in changes.items():
        *groups, last = key.split("__")
        group = result
        for name in groups:
            group = group[name]
        group[last] = value
    return result


def job(**changes: Any) -> Options:
    """The configuration of a job from `/hf` to `/mm`, with some values changed as in `content`."""
    return Options.from_content(content(**{"source": "/hf", "target": "/mm", **changes}))


@cache
def _defaults() -> dict[str, Any]:
    loaded = yaml.safe_load((files("distconv.conf") / "config.yaml").read_text())
    return {key: value for key, value in loaded.items() if key not in ("defaults", "hydra")}
