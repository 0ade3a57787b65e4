"""The kind of a distributed checkpoint of Megatron-core, which `metadata.json` tells.

Owns which backends and versions are read, and the names of the others. Opens that file alone.
Format: `megatron/core/dist_checkpointing/core.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.errors import InputError
from distconv.formats.foreign import KIND_NAME
from distconv.formats.jsonfile import read_object
from distconv.tensors.stored import SourceFile

BACKEND = "torch_dist"
# By the key of the part of the checkpoint: the backend that is read, and its version.
COMMON = "common"
_READ = {"sharded": (BACKEND, 1), COMMON: ("torch", 1)}
_SAVE_AGAIN = "load it in training, and save it with --ckpt-format torch_dist"
_OTHERS = {
    "zarr": "a zarr checkpoint, as Megatron-core wrote it before torch_dist",
    "fsdp_dtensor": "a checkpoint of Megatron-FSDP, whose tensors are cut as its parameters are in memory",
    "torch_dcp": "a checkpoint of torch.distributed.checkpoint by Megatron-LM's FSDP2",
}


def kind_content() -> dict[str, Any]:
    """The content of `metadata.json` of a checkpoint that all versions since Megatron-core 0.12 read."""
    return {
        f"{part}_{key}": value
        for part, (backend, version) in _READ.items()
        for key, value in (("backend", backend), ("backend_version", version))
    }


def check_kind(directory: Path, seen: list[SourceFile]) -> bool:
    """Check that the checkpoint in a directory is one that is read, and return whether its common part is a file.

    The identity of `metadata.json` is added to `seen`.

    Raises:
        InputError: no `metadata.json`, or a damaged one; another backend, or another version of it.
    """
    path = directory / KIND_NAME
    content = read_object(path, "the kind of the checkpoint", seen)
    # Since Megatron-core 0.19 the common part is an entry beside the tensors.
    has_common_file = f"{COMMON}_backend" in content
    for part, (backend, version) in _READ.items():
        if part != COMMON or has_common_file:
            _check(path, content, part, backend, version)
    return has_common_file


def _check(path: Path, content: Mapping[str, Any], part: str, backend: str, version: int) -> None:
    found, found_version = content.get(f"{part}_backend"), content.get(f"{part}_backend_version")
    if found != backend:
        what = _OTHERS.get(found) if isinstance(found, str) else None
        named = f"{part}_backend is {found!r}" + (f": {what}" if what else "")
        raise InputError(f"{path}: {named}; expected {backend!r}: {_SAVE_AGAIN}")
    if found_version != version:
        raise InputError(
            f"{path}: version {found_version!r} of the {part} backend {backend}; expected {version}: {_SAVE_AGAIN}"
        )
