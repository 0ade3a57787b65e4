"""Ranges of quantised tensors, dequantised box by box from the bytes that these ask for, against the formulas."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.tensors import quantised
from distconv.tensors.quantised import Dequantise, boxes
from distconv.tensors.stored import NOWHERE, Quantised, SourceIndex, StoredTensor, as_stored, scale_shape
from tests.quantised import as_bfloat16, from_bfloat16, of_fp8, of_int4, of_mxfp4

SIZES = st.integers(1, 9)


def stored(code, shape, block, scale_type, dtype, bits=8, words=1):
    scales = StoredTensor("w.scales", scale_type, scale_shape(shape, block), NOWHERE, 0)
    return StoredTensor("w", dtype, shape, NOWHERE, 0, Quantised(code, bits, words, block, scales, dtype))


def dequantised(tensor, codes, scales, first, count, size):
    """The bytes of a range of elements, of nothing but the bytes that its boxes ask for."""
    made, dequantise = b"", Dequantise()
    codes, scales = codes.tobytes(), scales.tobytes()
    for box in boxes(tensor, first, count):
        asked = bytearray(codes[box.code_offset : box.code_offset + box.code_bytes])
        needed = bytearray(scales[box.scale_offset : box.scale_offset + box.scale_bytes])
        assert (len(asked), len(needed)) == (box.code_bytes, box.scale_bytes)
        part = bytearray(box.rows * box.columns * size)
        dequantise(tensor, box, memoryview(asked), memoryview(needed), memoryview(part))
        made += part
    return made


def ranges(data, elements):
    first = data.draw(st.integers(0, elements - 1))
    return first, data.draw(st.integers(1, elements - first))


@pytest.fixture(autouse=True)
def _small_boxes(monkeypatch):
    monkeypatch.setattr(quantised, "BOX_ELEMENTS", 16)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_fp8_of_any_shape_block_and_range(data):
    shape = tuple(data.draw(st.lists(SIZES, min_size=2, max_size=3)))
    block = data.draw(st.tuples(SIZES, SIZES))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = random.integers(0, 256, shape, np.uint8)
    codes[codes & 0x7F == 0x7F] ^= 1
    scales = random.normal(size=scale_shape(shape, block)).astype(np.float32)
    first, count = ranges(data, prod(shape))

    tensor = stored("float8_e4m3fn", shape, block, "float32", "float32")
    found = dequantised(tensor, codes, scales, first, count, 4)

    assert found == of_fp8(codes, scales, block).ravel()[first : first + count].tobytes()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_int4_of_any_shape_group_and_range_with_rows_of_whole_words(data):
    rows, columns, group = data.draw(SIZES), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = random.integers(0, 2**32, (rows, -(-columns // 8)), np.uint32).view(np.int32)
    scales = as_bfloat16(random.normal(size=(rows, -(-columns // group))))
    first, count = ranges(data, rows * columns)

    tensor = stored("int4", (rows, columns), (1, group), "bfloat16", "bfloat16", bits=4, words=4)
    found = dequantised(tensor, codes, scales, first, count, 2)

    expected = as_bfloat16(of_int4(codes, from_bfloat16(scales), columns, group))
    assert found == expected.ravel()[first : first + count].tobytes()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_mxfp4_of_any_range_and_all_scales_that_bfloat16_has(data):
    experts, rows, groups = (data.draw(st.integers(1, 3)) for _ in range(3))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = random.integers(0, 256, (experts, rows, groups, 16), np.uint8)
    scales = random.integers(0, 253, (experts, rows, groups), np.uint8)
    shape = (experts, rows, groups * 32)
    first, count = ranges(data, prod(shape))

    tensor = stored("mxfp4", shape, (1, 32), "uint8", "bfloat16", bits=4)
    found = dequantised(tensor, codes, scales, first, count, 2)

    expected = as_bfloat16(of_mxfp4(codes, scales).transpose(0, 2, 1))
    assert found == expected.ravel()[first : first + count].tobytes()


def test_the_largest_scale_of_a_byte_is_two_to_the_128():
    """Half of it is a number, more is infinite, and nothing of it is NaN."""
    codes = np.array([0x10, 0x92] + [0] * 14, np.uint8)
    tensor = stored("mxfp4", (1, 1, 32), (1, 32), "uint8", "bfloat16", bits=4)
    found = np.frombuffer(dequantised(tensor, codes, np.array([255], np.uint8), 0, 4, 2), np.uint16)
    assert from_bfloat16(found).tolist() == [0.0, 2.0**127, float("inf"), -(2.0**127)]


def test_zeros_of_a_scale_of_a_byte_stay_what_they_are():
    codes = np.array([[0x38, 0x80, 0x00]], np.uint8)
    tensor = stored("float8_e4m3fn", (1, 3), (1, 3), "float8_e8m0fnu", "float32")
    found = np.frombuffer(dequantised(tensor, codes, np.array([[0]], np.uint8), 0, 3, 4), np.float32)
    assert (found.tolist(), np.signbit(found).tolist()) == ([2.0**-127, 0.0, 0.0], [False, True, False])


def test_a_tensor_is_read_in_few_boxes(monkeypatch):
    monkeypatch.setattr(quantised, "BOX_ELEMENTS", 2**18)
    tensor = stored("float8_e4m3fn", (512, 1024), (128, 128), "float32", "float32")
    found = list(boxes(tensor, 0, 512 * 1024))
    assert [(each.rows, each.code_bytes, each.scale_bytes) for each in found] == [(256, 2**18, 2 * 8 * 4)] * 2


def test_a_quantised_tensor_is_shared_with_other_processes():
    tensor = stored("int4", (3, 12), (1, 4), "bfloat16", "bfloat16", bits=4, words=4)
    index = SourceIndex(
        directory="/hf", tensors={"w": tensor, "plain": StoredTensor("plain", "bool", (1,), NOWHERE, 9)}
    )
    assert SourceIndex.from_json(index.to_json()) == index


def test_what_is_published_turned_is_a_table_over_what_is_stored():
    scales = StoredTensor("w.scales", "uint8", (2, 3, 1), NOWHERE, 0)
    tensor = StoredTensor(
        "w", "bfloat16", (2, 3, 32), NOWHERE, 0, Quantised("mxfp4", 4, 1, (1, 32), scales, "bfloat16", turned=True)
    )
    (made,) = as_stored([tensor])
    assert made.tensor.shape == tensor.published_shape == (2, 32, 3)
    assert made.tensor.copies[0].dims == (0, 2, 1)
