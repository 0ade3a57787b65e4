"""Names of models on the Hugging Face hub, where a directory was asked for, and the local cache of what was downloaded.

Owns how such a name is recognised and where the cache has it: the words that follow tell a user what to type. Never
downloads, and a cached directory is never used unasked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

# A path of two names, as of any directory; or the address of the model's page.
_NAME = re.compile(r"(?:https?:/+huggingface\.co/)?([\w][\w.-]*/[\w][\w.-]*)(/tree/[^/]+)?/?", re.ASCII)


def hub_words(path: Path, key: str, environment: Mapping[str, str] | None = None) -> str:
    """What to do about a path of option `key` that is not there, if it may be the name of a model; else nothing."""
    match = _NAME.fullmatch(os.fspath(path))
    if match is None:
        return ""
    name = match[1]
    known = cached_snapshot(name, os.environ if environment is None else environment)
    if known is not None:
        return f"; the local cache of the Hugging Face hub has a model of this name: give {key}={known}"
    if path.parent.is_dir():
        return ""
    return (
        f"; if it is the name of a model on the Hugging Face hub: hf download {name} gets it, and prints the directory "
        "to give"
    )


def cached_snapshot(name: str, environment: Mapping[str, str]) -> Path | None:
    """The directory of the model `name` in the local cache, as `snapshot_in`."""
    return snapshot_in(_cache(environment) / f"models--{name.replace('/', '--')}")


def snapshot_in(model: Path) -> Path | None:
    """The snapshot in the directory of a model in the cache: that of `main`, or else the newest; `None` if none is."""
    try:
        main = model / "snapshots" / (model / "refs" / "main").read_text(errors="replace").strip()
        if main != model / "snapshots" and main.is_dir():
            return main
    except (OSError, ValueError):
        pass
    try:
        there = [path for path in (model / "snapshots").iterdir() if path.is_dir()]
        return max(there, key=lambda path: (path.stat().st_mtime, path.name), default=None)
    except OSError:
        return None


def _cache(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models, by the variables that it heeds."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return Path(environment[name]).expanduser()
    home = environment.get("HF_HOME")
    if not home:
        home = os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"
