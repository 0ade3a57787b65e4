"""Tensors of torch as forms and bytes. Imports torch: only modules that read with it import this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distconv.formats.readers import Form, Key, ReadFile


def form_of(value: Any) -> Form:
    """Element type and shape of a tensor; of anything else the name of its type."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, ()
    return name_of(value.dtype), tuple(value.shape)


def name_of(dtype: torch.dtype) -> str:
    """The name of an element type."""
    return str(dtype).removeprefix("torch.")


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; those of its storage, not a copy, where it is contiguous."""
    data: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return data


def mapped_file(tensors: Mapping[Key, Any], differences: Sequence[str] = ()) -> ReadFile:
    """A file that was read by a mapping, given everything that was found in it."""
    return ReadFile(
        forms={key: form_of(value) for key, value in tensors.items()},
        data=lambda key: bytes_of(tensors[key]),
        is_mapped=True,
        differences=differences,
    )
