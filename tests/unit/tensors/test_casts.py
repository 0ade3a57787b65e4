"""A cast is torch's `.to()` to the bit, and a NaN the quiet NaN of its sign."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors import casts
from distconv.tensors.casts import Cast, cast_bytes
from distconv.tensors.dtypes import FLOATING, ITEM_SIZE

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
QUIET = {"bfloat16": 0x7FC0, "float16": 0x7E00, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}
PAIRS = [(one, other) for one in FLOATING for other in FLOATING if one != other]
# Of float32: around each power of two, half of the last places of the narrow types, the ends of all ranges.
EDGES = [
    *(exponent << 23 | mantissa for exponent in range(256) for mantissa in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFFFF)),
    *(exponent << 23 | mantissa for exponent in range(256) for mantissa in (0x3000, 0x7FFF, 0x8000, 0x8001, 0x18000)),
    *(0x7F7F7FFF, 0x7F7F8000, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0x33400000, 0x387FE000, 0x7FBFFFFF),
]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(BITS[tensor.element_size()])


def made(tensor: torch.Tensor, into: str) -> tuple[torch.Tensor, int]:
    """The tensor cast here, and how many elements became infinite."""
    result = torch.empty(tensor.shape, dtype=getattr(torch, into))
    source, target = (memoryview(each.view(torch.uint8).numpy()) for each in (tensor, result))
    return result, cast_bytes(source, str(tensor.dtype).removeprefix("torch."), target, into)


def check(tensor: torch.Tensor, into: str) -> None:
    found, lost = made(tensor, into)
    expected, nan = tensor.to(getattr(torch, into)), torch.isnan(tensor)
    assert torch.equal(bits_of(found)[~nan], bits_of(expected)[~nan])
    negative = QUIET[into] - 2 ** (8 * ITEM_SIZE[into] - 1)
    quiet = torch.where(bits_of(tensor)[nan] < 0, negative, QUIET[into])
    assert torch.equal(bits_of(found)[nan].to(torch.int64), quiet)
    assert lost == (torch.isinf(expected) & torch.isfinite(tensor)).sum()


def sampled(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)


def edges() -> torch.Tensor:
    positive = np.array(EDGES, np.uint32)
    return torch.from_numpy(np.concatenate([positive, positive | np.uint32(1 << 31)]).view(np.float32))


@pytest.mark.parametrize("into", ["bfloat16", "float16"])
def test_of_16_million_patterns_of_float32(into):
    check(torch.cat([edges(), sampled(2**24, seed=1)]), into)


@pytest.mark.parametrize("into", ["bfloat16", "float16", "float32"])
def test_of_float64_through_float32(into):
    """What torch rounds twice is rounded twice."""
    single = torch.cat([edges(), sampled(2**16, seed=2)]).double()
    between = single * (1 + 2**-26)
    huge = torch.tensor([1e300, -1e300, 1e-300, 1 + 2**-8 + 2**-40, 3.5e38, float("nan"), -float("inf")]).double()
    check(torch.cat([single, between, huge]), into)


@pytest.mark.parametrize(("dtype", "into"), [each for each in PAIRS if ITEM_SIZE[each[0]] == 2])
def test_of_all_numbers_of_16_bits(dtype, into):
    check(torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(getattr(torch, dtype)), into)


def test_float32_in_float64_is_exact():
    check(torch.cat([edges(), sampled(2**16, seed=3)]), "float64")


@given(st.sampled_from(PAIRS), st.integers(0, 70), st.integers(0, 2**32))
def test_of_any_length(pair, length, seed):
    """Pieces end anywhere, and elements are marked where they are."""
    dtype, into = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(casts, "_PIECE", 16)
        check(sampled(length, seed).to(getattr(torch, dtype)), into)


def vectors() -> Iterator[tuple[str, list[int], list[int]]]:
    found = json.loads(Path(__file__).with_name("cast_float32.json").read_text())
    for into in ("bfloat16", "float16"):
        yield into, *([int(each, 16) for each in found[name]] for name in ("float32", into))


@pytest.mark.parametrize(("into", "given_bits", "expected"), list(vectors()))
def test_documented_vectors(into, given_bits, expected):
    found, _ = made(torch.from_numpy(np.array(given_bits, np.uint32).view(np.float32)), into)
    assert found.view(torch.uint16).tolist() == expected


def test_what_is_infinite_already_has_not_overflowed():
    given = [65504.0, 65519.996, 65520.0, -7e4, float("inf"), float("nan"), 3.4e38]
    assert [made(torch.tensor([each]), "float16")[1] for each in given] == [0, 0, 1, 1, 0, 0, 1]
    assert [made(torch.tensor([each]), "bfloat16")[1] for each in given] == [0, 0, 0, 0, 0, 0, 1]
    assert made(torch.tensor(given), "float16")[1] == 3
    assert made(torch.tensor([]), "float16")[1] == 0


@given(
    st.sampled_from(PAIRS),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.permutations(range(4)),
    st.sampled_from([1, 7, 2**15]),
    st.integers(0, 2**32),
)
def test_of_any_box_of_any_array(pair, shape, order, piece, seed):
    """Every second element of a source, in another order of dims, into every third of a target."""
    dtype, into = pair
    order = [dim for dim in order if dim < len(shape)]
    values = sampled(2 * math.prod(shape), seed).to(getattr(torch, dtype)).reshape(*shape, 2)[..., 1]
    target = np.full((*(shape[dim] for dim in order), 3), 7, f"u{ITEM_SIZE[into]}")
    given = bits_of(values.nan_to_num()).numpy().view(f"u{ITEM_SIZE[dtype]}").transpose(order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(casts, "_PIECE", piece)
        Cast()(given, dtype, target[..., 1], into)
    expected = bits_of(values.nan_to_num().to(getattr(torch, into))).numpy().transpose(order)
    np.testing.assert_array_equal(target[..., 1].view(expected.dtype), expected)
    assert (target[..., [0, 2]] == 7).all()
