"""Tensor data as numbers and back: the arithmetic in which LoRA factors are multiplied and added to their base weight.

Owns the arithmetic, the one place where a conversion computes: in float32 (float64 stays that), rounded once. It is
that of PEFT on a CPU to the bit, as far as torch multiplies rows of a matrix as it multiplies the whole. Reads and
writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32] | NDArray[np.float64]
_PLAIN: Mapping[str, type[np.floating]] = {"float64": np.float64, "float32": np.float32, "float16": np.float16}
_HALF = np.uint32(0x7FFF)
_QUIET = np.uint16(0x40)


def numbers(data: bytes | bytearray, dtype: str, shape: tuple[int, ...]) -> Numbers:
    """The elements of a tensor, given its bytes: as float64 if `dtype` is that, else widened to float32."""
    if dtype == "bfloat16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
        single: NDArray[np.float32] = wide.view(np.float32)
        return single.reshape(shape)
    if dtype == "float64":
        return np.frombuffer(data, np.float64).reshape(shape)
    narrow = np.frombuffer(data, np.float16 if dtype == "float16" else np.float32)
    return narrow.astype(np.float32).reshape(shape)


def scaled_product(b: Numbers, a: Numbers, scaling: float) -> Numbers:
    """`scaling` times the product of `b`, of shape [rows, rank], and `a`, of shape [rank, columns]."""
    # Here, since planning does without. numpy adds up in an order that depends on the number of rows.
    import torch  # noqa: PLC0415

    wide = np.result_type(a, b)
    try:
        product: Numbers = (torch.from_numpy(b.astype(wide)) @ torch.from_numpy(a.astype(wide)) * scaling).numpy()
    except RuntimeError as error:
        # Nothing else can go wrong in a product of matrices that fit; torch has no class of its own for it.
        raise MemoryError(str(error).partition("\n")[0]) from error
    return product


def as_bytes(values: Numbers, dtype: str) -> memoryview:
    """The bytes of a tensor of element type `dtype` with these elements, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return memoryview(np.ascontiguousarray(values, _PLAIN[dtype]).tobytes())
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + _HALF + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    cut = (bits >> np.uint32(16)).astype(np.uint16)
    return memoryview(np.where(np.isnan(values), cut | _QUIET, rounded.astype(np.uint16)).tobytes())
