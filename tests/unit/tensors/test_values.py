"""What a merge computes: as PEFT does it in float32 on a CPU, to the bit, and rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.values import as_bytes, numbers, scaled_product

KINDS = st.sampled_from(["bfloat16", "float16", "float32", "float64"])


def drawn(shape: tuple[int, ...], dtype: str, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))


def raw(tensor: torch.Tensor) -> bytearray:
    return bytearray(tensor.contiguous().view(torch.uint8).numpy().tobytes())


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 16), st.integers(1, 40)),
    of_base=KINDS,
    of_factors=st.sampled_from(["bfloat16", "float16", "float32"]),
    scaling=st.one_of(st.floats(0.01, 64), st.integers(1, 64)),
    seed=st.integers(0, 2**32),
)
def test_a_merge_is_that_of_peft_to_the_bit(shape, of_base, of_factors, scaling, seed):
    rows, rank, columns = shape
    base, b, a = (
        drawn(each, dtype, seed + number)
        for number, (each, dtype) in enumerate(
            [((rows, columns), of_base), ((rows, rank), of_factors), ((rank, columns), of_factors)]
        )
    )
    # As `LoraLayer.get_delta_weight` and `merge`, of factors that PEFT loads as float32; one rounding, by the addition.
    expected = base.clone()
    expected += (b.float() @ a.float()) * scaling

    product = scaled_product(numbers(raw(b), of_factors, b.shape), numbers(raw(a), of_factors, a.shape), scaling)
    data, _ = as_bytes(numbers(raw(base), of_base, base.shape) + product, of_base)

    assert bytes(data) == bytes(raw(expected))


@pytest.mark.parametrize("turned", [False, True])
def test_factors_of_different_precision_are_multiplied_in_the_wider_one(turned):
    types = (np.float64, np.float32) if turned else (np.float32, np.float64)
    b, a = (np.full(shape, 1 / 3, kind) for shape, kind in zip(((3, 1), (1, 2)), types, strict=True))
    found = scaled_product(b, a, 3.0)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, (b.astype(np.float64) @ a) * 3.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_ties_are_rounded_to_even(dtype):
    # Half of the last place of bfloat16 and of float16 above one, and above the number that follows it.
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-8, -1 - 2**-11], np.float64)
    wide = values if dtype == "float64" else values.astype(np.float32)
    expected = torch.from_numpy(values).to(getattr(torch, dtype))
    assert bytes(as_bytes(wide, dtype)[0]) == bytes(raw(expected))


def test_what_is_no_number_stays_none_and_what_is_infinite_stays_so():
    """Also with bits that rounding would carry into the sign, or cut off so that infinity is left."""
    bits = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FBFFFFF], np.uint32)
    found = np.frombuffer(as_bytes(bits.view(np.float32), "bfloat16")[0], np.uint16)
    assert np.isnan(numbers(bytearray(found.tobytes()), "bfloat16", found.shape)).all()
    assert (found >> 15 == bits >> 31).all()
    largest = np.array([np.inf, -np.inf, np.finfo(np.float32).max], np.float32)
    assert np.frombuffer(as_bytes(largest, "bfloat16")[0], np.uint16).tolist() == [0x7F80, 0xFF80, 0x7F80]
