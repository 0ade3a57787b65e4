"""Ways to break a checkpoint: changes of the case that it is written from, and damage to the files afterwards.

A change gets the case (see tests/checkpoints.py) and leaves a checkpoint that is another model; damage gets the
directory of the test and breaks what is there. Both return nothing and are named for what they leave.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

Change = Callable[[dict[str, Any]], None]
Damage = Callable[[Path], None]

# Of the case qwen2vl__tp1_pp1: a shard of five, its first two tensors, and the index.
SHARD = "hf/model-00003-of-00005.safetensors"
FIRST, SECOND = "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.down_proj.weight"
INDEX = "hf/model.safetensors.index.json"
CONFIG = "hf/config.json"


def config(field: str, value: object) -> Change:
    """Give a field of config.json, by dotted path, this value; `None` removes it."""

    def change(case: dict[str, Any]) -> None:
        *parents, name = field.split(".")
        content = case["hf_config"]
        for parent in parents:
            content = content[parent]
        content[name] = value
        if value is None:
            del content[name]

    return change


def without(pattern: str) -> Change:
    """Leave tensors out."""

    def change(case: dict[str, Any]) -> None:
        for name in _matching(case, pattern):
            del case["source_tensors"][name]

    return change


def with_tensors(*names: str) -> Change:
    """Add tensors."""

    def change(case: dict[str, Any]) -> None:
        case["source_tensors"] |= {name: ["bfloat16", [4], Path(SHARD).name] for name in names}

    return change


def renamed(pattern: str, *, old: str = "", new: str = "") -> Change:
    """Give all tensors the name that a pattern makes of theirs, with `new` for `old`."""

    def change(case: dict[str, Any]) -> None:
        tensors = case["source_tensors"].items()
        case["source_tensors"] = {
            pattern.format(name.replace(old, new) if old else name): each for name, each in tensors
        }

    return change


def sized(pattern: str, **dims: int) -> Change:
    """Give tensors another size in some dims: `rows` is dim 0, `columns` dim 1."""

    def change(case: dict[str, Any]) -> None:
        for name in _matching(case, pattern):
            shape = case["source_tensors"][name][1]
            shape[:2] = [dims.get("rows", shape[0]), *([dims.get("columns", shape[1])] if len(shape) > 1 else [])]

    return change


def typed(pattern: str, dtype: str) -> Change:
    """Give tensors another element type."""

    def change(case: dict[str, Any]) -> None:
        for name in _matching(case, pattern):
            case["source_tensors"][name][0] = dtype

    return change


def _matching(case: Mapping[str, Any], pattern: str) -> list[str]:
    names = [name for name in case["source_tensors"] if fnmatchcase(name, pattern)]
    assert names, f"no tensor {pattern}"
    return names


def deleted(path: str) -> Damage:
    return lambda directory: (directory / path).unlink()


def written(path: str, text: str) -> Damage:
    """Write a file, and the directories that it needs."""

    def damage(directory: Path) -> None:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)

    return damage


def longer(path: str, nbytes: int) -> Damage:
    """Lengthen a file by this number of bytes, or shorten it."""
    return lambda directory: os.truncate(directory / path, (directory / path).stat().st_size + nbytes)


def header_length(path: str, length: int) -> Damage:
    """Make a shard say that its header is this long."""

    def damage(directory: Path) -> None:
        with (directory / path).open("r+b") as stream:
            stream.write(length.to_bytes(8, "little"))

    return damage


def header(path: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of a shard; the data behind it stays as it is."""

    def damage(directory: Path) -> None:
        content = (directory / path).read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:start])
        change(entries)
        text = json.dumps(entries).encode()
        (directory / path).write_bytes(len(text).to_bytes(8, "little") + text + content[start:])

    return damage


def entry(path: str, name: str, **fields: object) -> Damage:
    """Change what the header of a shard says of a tensor."""
    return header(path, lambda entries: entries[name].update(fields))


def index(change: Callable[[dict[str, str]], object]) -> Damage:
    """Change the map from tensors to shards of the index."""

    def damage(directory: Path) -> None:
        content = json.loads((directory / INDEX).read_text())
        change(content["weight_map"])
        (directory / INDEX).write_text(json.dumps(content))

    return damage


def sparse(path: str, name: str, rows: int) -> Damage:
    """Give a tensor of bfloat16 this many rows, in a shard that takes no space on the disk."""

    def resized(entries: dict[str, Any]) -> None:
        end = 0
        entries[name]["shape"][0] = rows
        for entry in entries.values():
            if "shape" in entry:
                start, end = end, end + 2 * prod(entry["shape"])
                entry["data_offsets"] = [start, end]

    def damage(directory: Path) -> None:
        header(path, resized)(directory)
        content = (directory / path).read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        ends = [entry["data_offsets"][1] for entry in json.loads(content[8:start]).values() if "shape" in entry]
        os.truncate(directory / path, start + max(ends))

    return damage
