"""Where elements differ and how far, as numbers of any type; compared with torch's own arithmetic."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.tensors.differences import Difference, Farthest, difference, together

TYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
FLOATS = ["float64", "float32", "float16", "bfloat16"]


def data(values: list[float], dtype: str) -> memoryview:
    return memoryview(torch.tensor(values, dtype=TYPES[dtype]).view(torch.uint8).numpy().tobytes())


def found(one: list[float], other: list[float], dtype: str = "float32") -> Difference | None:
    return difference(data(one, dtype), data(other, dtype), dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_equal_elements_have_no_difference(dtype):
    assert found([1, 0, 1], [1, 0, 1], dtype) is None
    assert found([], [], dtype) is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_farthest_numbers_are_found(dtype):
    assert found([1, 2, 3, 4], [1, 2.5, 7, 4], dtype) == Difference(2, 1, Farthest(4.0, 2, (3.0, 7.0)))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int64", "uint8", "bool"])
def test_of_other_types_it_is_told_where(dtype):
    assert found([1, 1, 0, 1], [1, 0, 1, 1], dtype) == Difference(2, 1, None)


def test_of_numbers_as_far_apart_the_first_are_told():
    assert found([0, 1, 1], [0, 2, 2]) == Difference(2, 1, Farthest(1.0, 1, (1.0, 2.0)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_is_equal_to_itself_and_infinitely_far_from_numbers(dtype):
    assert found([nan, 1], [nan, 1], dtype) is None
    far = found([nan, 1], [3, 9], dtype)
    assert far is not None
    assert far.farthest is not None
    assert (far.elements, far.farthest.distance, far.farthest.at) == (2, inf, 0)
    assert isnan(far.farthest.numbers[0])
    assert far.farthest.numbers[1] == 3


def test_nan_of_other_bits_and_zeros_of_other_signs_differ_and_are_not_apart():
    one, other = (memoryview((0x7FC00000 + each).to_bytes(4, "little")) for each in (0, 1))
    assert (made := difference(one, other, "float32")) is not None
    assert made.farthest is not None
    assert made.farthest.distance == 0
    assert found([0.0], [-0.0]) == Difference(1, 0, Farthest(0.0, 0, (0.0, -0.0)))


def test_infinities():
    assert found([inf], [inf]) is None
    assert found([inf, 0], [-inf, 5]) == Difference(2, 0, Farthest(inf, 0, (inf, -inf)))
    assert found([3.0e38], [-3.0e38], "float32").farthest.distance == pytest.approx(6e38)


def test_it_is_exact_where_the_type_would_round():
    """In float16 both distances are 1 and 0.99951171875 rounded to the same."""
    one, other = [2048.0, 1.0], [2050.0, 3.001953125]
    assert found(one, other, "float16") == Difference(2, 0, Farthest(2.001953125, 1, (1.0, 3.001953125)))


@given(st.data(), st.sampled_from(FLOATS))
def test_it_is_what_torch_finds(draw, dtype):
    bits = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}[dtype]
    words = st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=40)
    first = draw.draw(words)
    second = [draw.draw(st.sampled_from([each, each ^ 1, each ^ (1 << (bits - 1))])) for each in first]
    raw = [b"".join(each.to_bytes(bits // 8, "little") for each in one) for one in (first, second)]
    got = difference(memoryview(raw[0]), memoryview(raw[1]), dtype)
    one, other = (torch.frombuffer(bytearray(each), dtype=TYPES[dtype]).double() for each in raw)
    places = [at for at, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if not places:
        assert got is None
        return
    apart = (one - other).abs()
    both = one.isnan() & other.isnan()
    apart[apart.isnan()] = inf
    apart[both] = 0
    at = max(places, key=lambda each: (apart[each].item(), -each))
    assert got is not None
    assert got.farthest is not None
    assert (got.elements, got.first) == (len(places), places[0])
    assert (got.farthest.distance, got.farthest.at) == (apart[at].item(), at)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30), st.data())
def test_it_does_not_depend_on_how_a_tensor_is_divided(pairs, draw):
    one, other = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    whole = found(one, other)
    cuts = sorted(draw.draw(st.sets(st.integers(1, len(pairs) - 1), max_size=4)))
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, len(pairs)], strict=True):
        part = found(one[start:stop], other[start:stop])
        parts += [] if part is None else [part.moved(start)]
    order = draw.draw(st.permutations(parts))
    assert (together(order) if order else None) == whole


@pytest.mark.parametrize("farthest", [None, Farthest(inf, 3, (1.0, inf))])
def test_it_goes_to_other_processes_as_plain_data(farthest):
    made = Difference(5, 2, farthest)
    assert Difference.from_json(made.to_json()) == made


def test_many_elements_are_compared_in_pieces(monkeypatch):
    monkeypatch.setattr("distconv.tensors.differences._PIECE", 3)
    one, other = [0.0] * 20, [float(each % 7) for each in range(20)]
    assert found(one, other) == Difference(17, 1, Farthest(6.0, 6, (0.0, 6.0)))
