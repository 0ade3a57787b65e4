"""A checkpoint in fp8 of the same shapes as another one: codes and scales as DeepSeek-V3 has them.

Owns the files. What they stand for is of no meaning; their sizes and shapes are, and that no number is NaN.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import content

BLOCK = 128
_SCHEME = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
# In every byte all bits but the highest one of the exponent: what is left is finite.
_FINITE = np.uint8(0xBF)


def write_fp8_twin(source: Path, directory: Path) -> None:
    """Write the twin of a bfloat16 directory, with the matrices of its layers in fp8."""
    directory.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
            shutil.copy(path, directory)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": _SCHEME}), encoding="utf-8")
    weight_map: dict[str, str] = {}
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        pieces = dict(_pieces(header))
        _write(directory / path.name, pieces)
        weight_map |= dict.fromkeys(pieces, path.name)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def _pieces(header: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, list[int], int]]]:
    """Names, types, shapes and bytes of what a shard holds instead."""
    for name, entry in header.items():
        shape = entry["shape"]
        if len(shape) != 2 or ".layers." not in name:
            yield name, (entry["dtype"], shape, 2 * int(np.prod(shape)))
            continue
        scales = [-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)]
        yield name, ("F8_E4M3", shape, int(np.prod(shape)))
        yield f"{name}_scale_inv", ("F32", scales, 4 * int(np.prod(scales)))


def _write(path: Path, pieces: Mapping[str, tuple[str, list[int], int]]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, size) in pieces.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, (dtype, _, size) in pieces.items():
            for block in content(name, size):
                file.write(np.frombuffer(block, np.uint8) & _FINITE if dtype == "F8_E4M3" else block)
