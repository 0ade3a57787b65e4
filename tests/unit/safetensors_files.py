"""Small safetensors files, right and wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INDEX_NAME = "model.safetensors.index.json"


def entry(start: int, stop: int, shape: Sequence[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


# Two tensors of 24 and 8 bytes.
HEADER: Mapping[str, Any] = {"a": entry(0, 24, (2, 3)), "b": entry(24, 32, (4,), "BF16")}


def shard(path: Path, header: Mapping[str, Any] | bytes = HEADER, *, data: int = 32, length: int | None = None) -> Path:
    """Write a file: a header, and so many bytes of data; `length` is what the file says of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


def indexed(directory: Path, shards: Mapping[str, Sequence[str]], weight_map: Any = ...) -> Path:
    """Write shards that hold tensors of these names, and the index that says so, or says something else."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, names in shards.items():
        header = {name: entry(4 * number, 4 * number + 4, ()) for number, name in enumerate(names)}
        shard(directory / file, header, data=4 * len(names))
    if weight_map is ...:
        weight_map = {name: file for file, names in shards.items() for name in names}
    (directory / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
