"""What tensors that lie in pieces hold, read by the addresses that the index gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor
from tests.unit.reference import evaluate


def assert_assembled(found: NamedTensor, tensor: torch.Tensor) -> None:
    """The bytes at the addresses are those of the tensor."""
    assert found.tensor.dtype == str(tensor.dtype).removeprefix("torch.")
    assert found.tensor.shape == tuple(tensor.shape)
    item = np.dtype(f"u{ITEM_SIZE[found.tensor.dtype]}")
    parts = [np.ndarray(part.shape, item, Path(part.file.path).read_bytes(), part.offset) for part in found.sources]
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert evaluate(found.tensor, parts, item).tobytes() == bits
