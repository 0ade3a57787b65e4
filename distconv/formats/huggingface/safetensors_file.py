"""The frames of safetensors files: a header, and a hole where the tensor data goes.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from types import MappingProxyType

from distconv.formats.frame import Frame
from distconv.tensors.dtypes import ITEM_SIZE, SAFETENSORS_CODE

_CODE_OF = MappingProxyType({dtype: code for code, dtype in SAFETENSORS_CODE.items()})
_ALIGNMENT = 8


def safetensors_frame(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Frame:
    """The frame of a file of tensors, given by name, element type and shape; they are stored in this order."""
    # As transformers writes it; without it some programs refuse the file.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts = []
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + prod(shape) * ITEM_SIZE[dtype]
        header[name] = {"dtype": _CODE_OF[dtype], "shape": list(shape), "data_offsets": [start, end]}
        starts.append(start)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    piece = len(text).to_bytes(8, "little") + text
    return Frame(pieces=[(0, piece)], holes=[len(piece) + start for start in starts], nbytes=len(piece) + end)
