"""A file that is laid out is what the library itself would have written, but for its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from distconv.formats.frame import write_frame
from distconv.formats.huggingface.safetensors import read_header
from distconv.formats.huggingface.safetensors_file import safetensors_frame
from distconv.tensors.dtypes import ITEM_SIZE, SAFETENSORS_CODE

Tensors = Sequence[tuple[str, str, tuple[int, ...]]]

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(st.sampled_from(sorted(SAFETENSORS_CODE.values())), SHAPES), max_size=6)


def lay_out(path: Path, tensors: Tensors) -> dict[str, int]:
    """Write a file without its data; the offset of each tensor."""
    frame = safetensors_frame(tensors)
    write_frame(path, frame)
    return {name: hole for (name, _, _), hole in zip(tensors, frame.holes, strict=True)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("laid_out") / "model.safetensors"


@given(TENSORS)
def test_the_reader_finds_every_tensor_where_it_was_put(path, given_tensors):
    tensors = [(f"t.é{number}", dtype, shape) for number, (dtype, shape) in enumerate(given_tensors)]
    offsets = lay_out(path, tensors)
    found = {each.name: each for each in read_header(path)}
    assert {name: (each.dtype, each.shape, each.offset) for name, each in found.items()} == {
        name: (dtype, shape, offsets[name]) for name, dtype, shape in tensors
    }
    end = min(offsets.values(), default=path.stat().st_size)
    assert end % 8 == 0
    for name, dtype, shape in tensors:
        assert offsets[name] == end
        end += prod(shape) * ITEM_SIZE[dtype]
    assert path.stat().st_size == end


def test_the_file_reads_as_zeros_and_as_its_data_when_that_is_written(path):
    arrays = {"b": np.arange(6, dtype="f4").reshape(2, 3), "a": np.arange(5, dtype="u1"), "c": np.zeros((), "f2")}
    offsets = lay_out(path, [(name, array.dtype.name, array.shape) for name, array in arrays.items()])
    assert all(not array.any() for array in load_file(path).values())
    with path.open("r+b") as stream:
        for name, array in arrays.items():
            stream.seek(offsets[name])
            stream.write(array.tobytes())
    found = load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_bytes_are_those_of_the_library(path, tmp_path):
    arrays = {"wide": np.zeros((2, 3), "f4"), "a": np.zeros(5, "f2"), "b": np.zeros(3, "f2")}
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    lay_out(path, [(name, array.dtype.name, array.shape) for name, array in arrays.items()])
    assert path.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_the_header_says_that_it_is_of_torch(path):
    lay_out(path, [])
    content = path.read_bytes()
    assert json.loads(content[8:]) == {"__metadata__": {"format": "pt"}}


def test_an_older_file_is_replaced_and_nothing_of_it_shows_through(path):
    path.write_bytes(b"\xff" * 4096)
    offsets = lay_out(path, [("a", "uint8", (64,))])
    assert path.read_bytes()[offsets["a"] :] == bytes(64)
