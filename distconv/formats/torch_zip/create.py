"""Laying out `.pt` files: a complete, valid file with holes where the tensor data goes.

`torch.save` writes the file, so it is exactly what torch reads; its data is skipped, so no tensor is ever resident.
Owns nothing of what the tensors hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from distconv.formats.torch_zip.archive import ArchivedTensor, read_archive


def lay_out(
    path: Path, keys: Iterable[str], tensors: Iterable[tuple[str, str, str, tuple[int, ...]]], extra: Mapping[str, Any]
) -> dict[tuple[str, str], int]:
    """Write a file of dictionaries of tensors; the file offset in bytes of each tensor, by (key, name).

    `tensors` gives key, name, element type and shape; `extra` are plain top-level values. The data reads as zeros
    until it is written, and the CRC fields of the zip stay zero: torch does not check them.

    Raises:
        OSError: the file cannot be written.
    """
    content: dict[str, Any] = {key: {} for key in keys}
    for key, name, dtype, shape in tensors:
        content[key][name] = torch.empty(shape, dtype=getattr(torch, dtype))
    # An open file, because the errors of torch's own writer do not say what the system said.
    with path.open("wb") as stream, torch.serialization.skip_data():
        torch.save({**content, **extra}, stream)
    del content
    archived = read_archive(path)
    return {
        (key, name): tensor.offset
        for key, entries in archived.items()
        if isinstance(entries, dict)
        for name, tensor in entries.items()
        if isinstance(tensor, ArchivedTensor)
    }
