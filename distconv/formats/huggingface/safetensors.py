"""The header of a safetensors file: read as records of a source index, and written with a hole for the data.

Owns the checks of a header: it is input from strangers, so every length, offset and name is verified before anything
relies on it. Reads and writes no tensor data.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from distconv.errors import InputError, raise_if, reading
from distconv.formats.frame import Frame
from distconv.formats.jsonfile import AGAIN, parse_object
from distconv.formats.lfs import POINTER, is_pointer
from distconv.formats.torch_zip.archive import LARGEST_INDEX, MOST_DIMS
from distconv.runtime.identity import look_at, with_header
from distconv.runtime.regular_files import open_file
from distconv.tensors.dtypes import ITEM_SIZE, SAFETENSORS_CODE
from distconv.tensors.stored import SourceFile, StoredTensor

# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000
_CODE_OF = MappingProxyType({dtype: code for code, dtype in SAFETENSORS_CODE.items()})
_ALIGNMENT = 8
_MISSING = "no such file: not downloaded, or a link whose target is gone"


def read_header(path: Path) -> list[StoredTensor]:
    """Read the tensors of a safetensors file, in the order of their data.

    Raises:
        InputError: the file is missing or truncated, or its header violates the format.
    """
    try:
        with reading(path, _MISSING), open_file(path) as stream:
            file = look_at(path, stream.fileno())
            size = file.size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if is_pointer(prefix):
                raise InputError(f"{path}: {POINTER}")
            if len(prefix) < 8:
                raise InputError(f"{path}: {size} bytes long, shorter than any safetensors file: truncated; {AGAIN}")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise InputError(
                    f"{path}: {size} bytes long, but its first 8 bytes say that a header of {length} bytes follows: "
                    f"truncated, or not a safetensors file; {AGAIN}"
                )
            text = stream.read(length)
            header = parse_object(text, f"{path} (header)")
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{str(path)!r}: not a name that a file can have") from None

    start = 8 + length
    file = with_header(file, [(0, start)], [prefix, text])
    header.pop("__metadata__", None)
    problems: list[str] = []
    tensors = []
    for name, entry in header.items():
        problem, tensor = _entry(name, entry, file, start)
        if tensor is None:
            problems.append(f"{path}: tensor {name}: {problem}")
        else:
            tensors.append(tensor)
    raise_if(problems)

    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            what = "overlaps the one before it" if tensor.offset < end else "leaves a hole before it"
            problems.append(
                f"{path}: tensor {tensor.name}: its data starts at byte {tensor.offset} and {what}; {AGAIN}"
            )
        end = tensor.offset + tensor.nbytes
    if not problems and end != size:
        problems.append(
            f"{path}: expected {end} bytes, found {size}: {'truncated' if end > size else 'data after the end'}; "
            f"{AGAIN}"
        )
    raise_if(problems)
    return tensors


def safetensors_frame(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Frame:
    """The frame of a file of tensors (name, element type, shape), which are stored in this order."""
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


def _entry(name: str, entry: Any, file: SourceFile, start: int) -> tuple[str, StoredTensor | None]:
    if not isinstance(entry, dict):
        return f"expected an object with dtype, shape and data_offsets; {AGAIN}", None
    dtype = SAFETENSORS_CODE.get(str(entry.get("dtype")))
    if dtype is None:
        return (
            f"unknown dtype {entry.get('dtype')!r:.80}; known: {', '.join(SAFETENSORS_CODE)}; save it as one of these",
            None,
        )
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_sizes(shape):
        return f"shape {shape!r:.80} is not a list of sizes; {AGAIN}", None
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {offsets!r:.80} are not a begin and an end; {AGAIN}", None
    needed = prod(shape) * ITEM_SIZE[dtype]
    if offsets[1] - offsets[0] != needed:
        found = offsets[1] - offsets[0]
        return f"{dtype} {shape} needs {needed} bytes, its data_offsets give {found}; {AGAIN}", None
    if start + offsets[1] > file.size:
        return f"its data ends at byte {start + offsets[1]}, the file at {file.size}: truncated; {AGAIN}", None
    return "", StoredTensor(name, dtype, tuple(shape), file, start + offsets[0])


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MOST_DIMS:
        return False
    return all(type(item) is int and 0 <= item <= LARGEST_INDEX for item in value)
