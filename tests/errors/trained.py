"""Ways to break what training saved: the files of Megatron ranks, and a torch.distributed.checkpoint.

As in `damage.py`, damage gets the directory of the test. Files are read and written by torch, not by distconv.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.errors.damage import Damage

FILE = "model_optim_rng.pt"
MARK = "executed"
Content = dict[str, Any]


class Malicious:
    """Whoever unpickles it leaves a mark in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {MARK}",)


def saved(pattern: str, change: Callable[[Content], Content], **options: Any) -> Damage:
    """Load the files of ranks, and save them as changed."""

    def damage(directory: Path) -> None:
        paths = sorted(directory.glob(f"{pattern}/{FILE}"))
        assert paths, f"no {pattern}/{FILE}"
        for path in paths:
            content = change(torch.load(path, weights_only=True))
            # What training saves holds objects, and a file in place may be written over.
            path.unlink()
            torch.save(content, path, **options)

    return damage


def tensor(pattern: str, name: str, change: Callable[[torch.Tensor], object], key: str = "model") -> Damage:
    """Change a tensor in the files of ranks."""

    def changed(content: Content) -> Content:
        model = content[key]
        return {**content, key: {**model, name: change(model[name])}}

    return saved(pattern, changed)


def with_tensor(pattern: str, name: str, value: object) -> Damage:
    """Add a tensor to the files of ranks."""
    return saved(pattern, lambda content: {**content, "model": {**content["model"], name: value}})


def without_tensor(pattern: str, *names: str) -> Damage:
    """Leave tensors out of the files of ranks."""

    def changed(content: Content) -> Content:
        return {**content, "model": {name: each for name, each in content["model"].items() if name not in names}}

    return saved(pattern, changed)


def with_entry(pattern: str, **entries: object) -> Damage:
    """Add something beside the model to the files of ranks."""
    return saved(pattern, lambda content: {**content, **entries})


def removed(*paths: str) -> Damage:
    """Remove directories."""

    def damage(directory: Path) -> None:
        for path in paths:
            shutil.rmtree(directory / path)

    return damage


def replaced(path: str, old: str, new: str) -> Damage:
    """Replace text in a file that is no text."""

    def damage(directory: Path) -> None:
        content = (directory / path).read_bytes()
        assert old.encode() in content
        (directory / path).write_bytes(content.replace(old.encode(), new.encode()))

    return damage


def copied(path: str, other: str) -> Damage:
    return lambda directory: shutil.copytree(directory / path, directory / other) and None


def halved(pattern: str) -> Damage:
    """Cut files in half."""

    def damage(directory: Path) -> None:
        paths = list(directory.glob(pattern))
        assert paths, f"no {pattern}"
        for path in paths:
            os.truncate(path, path.stat().st_size // 2)

    return damage


def metadata(path: str, change: Callable[[Any], object]) -> Damage:
    """Change the `.metadata` of a DCP."""

    def damage(directory: Path) -> None:
        found = pickle.loads((directory / path).read_bytes())  # noqa: S301 - the test's own file
        changed = change(found)
        (directory / path).write_bytes(pickle.dumps(found if changed is None else changed))

    return damage


def fields(path: str, **values: object) -> Damage:
    """Give fields of a JSON file other values."""

    def damage(directory: Path) -> None:
        content = json.loads((directory / path).read_text())
        (directory / path).write_text(json.dumps({**content, **values}))

    return damage
