"""Tensor data as numbers and back: the arithmetic in which LoRA factors are multiplied and added to their base weight.

Owns the arithmetic of merging: in float32 (float64 stays that), rounded once, as `casts` rounds. It is that of PEFT on
a CPU to the bit, as far as torch multiplies rows of a matrix as it multiplies the whole. Reads and writes nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from distconv.tensors.casts import cast_bytes
from distconv.tensors.dtypes import ITEM_SIZE

Numbers = NDArray[np.float32] | NDArray[np.float64]


def numbers(data: bytes | bytearray, dtype: str, shape: tuple[int, ...]) -> Numbers:
    """The elements of a tensor, given its bytes: as float64 if `dtype` is that, else widened to float32."""
    if dtype == "float64":
        return np.frombuffer(data, np.float64).reshape(shape)
    wide = np.empty(shape, np.float32)
    cast_bytes(memoryview(data), dtype, wide.reshape(-1).view(np.uint8).data, "float32")
    return wide


def scaled_product(b: Numbers, a: Numbers, scaling: float) -> Numbers:
    """`scaling` times the product of `b`, of shape [rows, rank], and `a`, of shape [rank, columns]."""
    # Not by numpy, which adds up in an order that depends on the number of rows.
    wide = np.result_type(a, b)
    try:
        product: Numbers = (torch.from_numpy(b.astype(wide)) @ torch.from_numpy(a.astype(wide)) * scaling).numpy()
    except RuntimeError as error:
        # Nothing else can go wrong in a product of matrices that fit; torch has no class of its own for it.
        raise MemoryError(str(error).partition("\n")[0]) from error
    return product


def added(one: Numbers, other: Numbers) -> Numbers:
    """The sum of two tensors of one shape; numbers that are too large become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        total: Numbers = one + other
    return total


def as_bytes(values: Numbers, dtype: str) -> tuple[memoryview, int]:
    """The bytes of a tensor of element type `dtype` with these elements, and how many became infinite by that."""
    if str(values.dtype) == dtype:
        return memoryview(values.tobytes()), 0
    data = memoryview(bytearray(values.size * ITEM_SIZE[dtype]))
    source = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    return data, cast_bytes(source, str(values.dtype), data, dtype)
