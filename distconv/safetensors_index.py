"""The source index of a Hugging Face directory, from the headers of its safetensors files alone.

Owns the checks of that format: a header is input from strangers, so every length, offset and name in it is verified
before anything relies on it. Reads no tensor data and follows no name out of the directory.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from distconv.dtypes import ITEM_SIZE, SAFETENSORS_CODE
from distconv.errors import InputError, named, raise_if
from distconv.jsonfile import parse_object, read_object
from distconv.source import SourceFile, SourceIndex, StoredTensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000


def read_directory(directory: Path) -> SourceIndex:
    """The index of the shards that `model.safetensors.index.json` names, or of the single file.

    Raises:
        InputError: no such directory, no or several candidates, a shard missing, truncated or damaged, or index and
            shards that disagree. All problems of the files are reported together.
    """
    check_directory(directory, "source")
    index_path = directory / INDEX_NAME
    if not index_path.exists():
        return SourceIndex(directory=str(directory), tensors=_read_shards(directory, [_single_file(directory)]))
    weight_map = _weight_map(index_path)
    tensors = _read_shards(directory, sorted(set(weight_map.values())))
    problems = []
    for name, shard in weight_map.items():
        if name not in tensors:
            problems.append(f"{index_path}: names the tensor {name} in {shard}, which does not hold it")
        elif (found := os.path.basename(tensors[name].file.path)) != shard:
            problems.append(f"{index_path}: names the tensor {name} in {shard}, but it is in {found}")
    extra = sorted(set(tensors) - set(weight_map))
    if extra:
        problems.append(f"{index_path}: does not name {len(extra)} tensors that its shards hold: {named(extra)}")
    raise_if(problems)
    return SourceIndex(directory=str(directory), tensors=tensors)


def check_directory(directory: Path, key: str) -> None:
    """Raise `InputError` unless the directory that configuration key `key` names exists and can be read."""
    if not directory.exists():
        raise InputError(f"{key}={directory}: no such directory")
    if not directory.is_dir():
        raise InputError(f"{key}={directory}: expected a directory, found a file; give the directory that holds it")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise InputError(f"{key}={directory}: no permission to read this directory")


def _single_file(directory: Path) -> str:
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if SINGLE_NAME in found or len(found) == 1:
        return SINGLE_NAME if SINGLE_NAME in found else found[0]
    if not found:
        raise InputError(f"{directory}: holds no *.safetensors file; expected a Hugging Face model directory")
    raise InputError(
        f"{directory}: holds {len(found)} safetensors files ({named(found, 3)}) but no {INDEX_NAME} that says which "
        "of them are the model; restore it from where the model was downloaded"
    )


def _weight_map(path: Path) -> Mapping[str, str]:
    weight_map = read_object(path, "finding the shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: expected an object 'weight_map' from tensor names to shard files")
    problems = []
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or os.path.basename(shard) != shard or shard in ("", ".", ".."):
            problems.append(f"{path}: tensor {name} is in {shard!r}, which is not the name of a file in this directory")
    raise_if(problems)
    return weight_map


def _read_shards(directory: Path, shards: list[str]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for shard in shards:
        try:
            for tensor in read_header(directory / shard):
                other = tensors.setdefault(tensor.name, tensor)
                if other is not tensor:
                    problems.append(f"tensor {tensor.name} is in both {other.file.path} and {tensor.file.path}")
        except InputError as error:
            problems += error.problems
    raise_if(problems)
    return tensors


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file in the order of their data.

    Raises:
        InputError: the file is missing, truncated, or its header is not what the format allows.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise InputError(
                    f"{path}: {size} bytes long, but its first 8 bytes say that a header of {length} bytes follows: "
                    "truncated, or not a safetensors file"
                )
            header = parse_object(stream.read(length), f"{path} (header)")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, but {INDEX_NAME} names it; download this shard") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None

    file = SourceFile(str(path), size)
    start = 8 + length
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
            problems.append(f"{path}: tensor {tensor.name}: its data starts at byte {tensor.offset} and {what}")
        end = tensor.offset + tensor.nbytes
    if not problems and end != size:
        problems.append(
            f"{path}: expected {end} bytes, found {size}: {'truncated' if end > size else 'data after the end'}"
        )
    raise_if(problems)
    return tensors


def _entry(name: str, entry: Any, file: SourceFile, start: int) -> tuple[str, StoredTensor | None]:
    if not isinstance(entry, dict):
        return "expected an object with dtype, shape and data_offsets", None
    dtype = SAFETENSORS_CODE.get(str(entry.get("dtype")))
    if dtype is None:
        return f"unknown dtype {entry.get('dtype')!r}; known: {', '.join(SAFETENSORS_CODE)}", None
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_sizes(shape):
        return f"shape {shape!r} is not a list of sizes", None
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"data_offsets {offsets!r} are not a begin and an end", None
    needed = prod(shape) * ITEM_SIZE[dtype]
    if offsets[1] - offsets[0] != needed:
        return f"{dtype} {shape} needs {needed} bytes, its data_offsets give {offsets[1] - offsets[0]}", None
    if start + offsets[1] > file.size:
        return f"its data ends at byte {start + offsets[1]}, the file at {file.size}: truncated", None
    return "", StoredTensor(name, dtype, tuple(shape), file, start + offsets[0])


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
