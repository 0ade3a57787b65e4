"""Laying out safetensors files: a header, and a hole where the tensor data goes.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from types import MappingProxyType

from distconv.tensors.dtypes import ITEM_SIZE, SAFETENSORS_CODE

_CODE_OF = MappingProxyType({dtype: code for code, dtype in SAFETENSORS_CODE.items()})
_ALIGNMENT = 8


def lay_out(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, int]:
    """Write a file of tensors, given by name, element type and shape, that reads as zeros; the file offset of each.

    Raises:
        OSError: the file cannot be written.
    """
    # As transformers writes it; without it some programs refuse the file.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts = {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + prod(shape) * ITEM_SIZE[dtype]
        header[name] = {"dtype": _CODE_OF[dtype], "shape": list(shape), "data_offsets": [start, end]}
        starts[name] = start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + start for name, start in starts.items()}
