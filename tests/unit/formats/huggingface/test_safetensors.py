"""Headers are input from strangers: valid ones are read, malformed ones refused; created files equal the library's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from distconv.errors import InputError
from distconv.formats.frame import write_frame
from distconv.formats.huggingface.safetensors import MAX_HEADER_BYTES, read_header, safetensors_frame
from distconv.runtime.identity import look_at, with_header
from distconv.tensors.dtypes import ITEM_SIZE, SAFETENSORS_CODE
from distconv.tensors.stored import StoredTensor
from tests.unit.safetensors_files import HEADER, entry, shard

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(st.sampled_from(sorted(SAFETENSORS_CODE.values())), SHAPES), max_size=6)


def problems(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_header(path)
    return caught.value.problems


def test_the_tensors_of_a_file_with_their_places(tmp_path):
    path = shard(tmp_path / "model.safetensors")
    size = path.stat().st_size
    start = size - 32
    file = with_header(look_at(path), [(0, start)], [path.read_bytes()[:start]])
    assert read_header(path) == [
        StoredTensor("a", "float32", (2, 3), file, start),
        StoredTensor("b", "bfloat16", (4,), file, start + 24),
    ]


def test_metadata_is_not_a_tensor_and_space_after_the_header_is_allowed(tmp_path):
    text = json.dumps({"__metadata__": {"format": "pt"}, **HEADER}).encode() + b"      "
    assert [tensor.name for tensor in read_header(shard(tmp_path / "f", text))] == ["a", "b"]


def test_tensors_come_in_the_order_of_their_data(tmp_path):
    swapped = {"late": entry(8, 12, ()), "early": entry(0, 8, (2,))}
    assert [tensor.name for tensor in read_header(shard(tmp_path / "f", swapped, data=12))] == ["early", "late"]


def test_a_file_without_tensors_and_tensors_without_elements_are_valid(tmp_path):
    assert read_header(shard(tmp_path / "f", {}, data=0)) == []
    header = {"empty": entry(4, 4, (0, 3)), "one": entry(0, 4, ()), "also": entry(0, 0, (0,))}
    found = read_header(shard(tmp_path / "g", header, data=4))
    assert {tensor.name: tensor.shape for tensor in found} == {"also": (0,), "one": (), "empty": (0, 3)}


@pytest.mark.parametrize("code", SAFETENSORS_CODE)
def test_every_element_type_is_known_with_its_size(tmp_path, code):
    dtype = SAFETENSORS_CODE[code]
    (tensor,) = read_header(
        shard(tmp_path / "f", {"x": entry(0, 3 * ITEM_SIZE[dtype], (3,), code)}, data=3 * ITEM_SIZE[dtype])
    )
    assert (tensor.dtype, tensor.nbytes) == (dtype, 3 * ITEM_SIZE[dtype])


def text(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header).encode()


@pytest.mark.parametrize(
    ("header", "given", "message"),
    [
        (HEADER, {"length": 2**60}, "first 8 bytes say that a header of 1152921504606846976 bytes follows"),
        (HEADER, {"length": 2**64 - 1}, "truncated, or not a safetensors file"),
        (HEADER, {"length": 10_000}, "say that a header of 10000 bytes follows: truncated"),
        (HEADER, {"length": 20}, "(header): not valid JSON"),
        (HEADER, {"data": 31}, "tensor b: its data ends at byte {size+1}, the file at {size}: truncated"),
        (HEADER, {"data": 33}, "expected {size-1} bytes, found {size}: data after the end"),
        (b"", {"data": 0}, "(header): not valid JSON"),
        (b"{", {}, "(header): not valid JSON"),
        (b"\xff\xfe{}", {}, "(header): not valid JSON"),
        (b"[" * 100_000, {}, "(header): not valid JSON"),
        (b"[]", {}, "(header): expected a JSON object, found list"),
        (b'"a"', {}, "(header): expected a JSON object, found str"),
        (b'{"a": ' + text(HEADER["a"]) + b', "a": ' + text(HEADER["b"]) + b"}", {}, "key given twice: a"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', {}, "key given twice: dtype"),
        ({"a": 3}, {}, "tensor a: expected an object with dtype, shape and data_offsets"),
        ({"a": entry(0, 32, (8,), "Q4")}, {}, "tensor a: unknown dtype 'Q4'; known: F64, "),
        ({"a": {"shape": [8], "data_offsets": [0, 32]}}, {}, "tensor a: unknown dtype None"),
        ({"a": {**HEADER["a"], "dtype": ["F32"]}}, {}, "tensor a: unknown dtype ['F32']"),
        ({"a": {**HEADER["a"], "shape": 8}}, {}, "tensor a: shape 8 is not a list of sizes"),
        ({"a": {**HEADER["a"], "shape": [-2, -3]}}, {}, "tensor a: shape [-2, -3] is not a list of sizes"),
        ({"a": {**HEADER["a"], "shape": [6.0]}}, {}, "tensor a: shape [6.0] is not a list of sizes"),
        ({"a": {**HEADER["a"], "shape": [True, 6]}}, {}, "tensor a: shape [True, 6] is not a list of sizes"),
        ({"a": {**HEADER["a"], "data_offsets": [0]}}, {}, "tensor a: data_offsets [0] are not a begin and an end"),
        ({"a": {**HEADER["a"], "data_offsets": [24, 0]}}, {}, "tensor a: data_offsets [24, 0] are not a begin and an"),
        ({"a": {**HEADER["a"], "data_offsets": [-24, 0]}}, {}, "tensor a: data_offsets [-24, 0] are not a begin"),
        (
            {"a": {**HEADER["a"], "data_offsets": "0 24"}},
            {},
            "tensor a: data_offsets '0 24' are not a begin and an end",
        ),
        ({"a": entry(0, 28, (2, 3))}, {}, "tensor a: float32 [2, 3] needs 24 bytes, its data_offsets give 28"),
        ({"a": entry(0, 32, (2**62, 4))}, {}, "its data_offsets give 32"),
        ({"a": entry(0, 36, (9,))}, {}, "tensor a: its data ends at byte {size+4}, the file at {size}: truncated"),
        (
            {"a": entry(0, 24, (6,)), "b": entry(20, 32, (3,))},
            {},
            "tensor b: its data starts at byte {size-12} and over",
        ),
        (
            {"a": entry(0, 24, (6,)), "b": entry(0, 24, (6,))},
            {"data": 24},
            "tensor b: its data starts at byte {size-24} ",
        ),
        (
            {"a": entry(0, 20, (5,)), "b": entry(24, 32, (2,))},
            {},
            "tensor b: its data starts at byte {size-8} and leaves",
        ),
        ({"a": entry(4, 32, (7,))}, {}, "tensor a: its data starts at byte {size-28} and leaves a hole before it"),
        ({}, {}, "expected {size-32} bytes, found {size}: data after the end"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, header, given, message):
    path = shard(tmp_path / "f", header, **given)
    size = path.stat().st_size
    for difference in range(-32, 5):
        message = message.replace(f"{{size{difference:+}}}", str(size + difference))
    (problem,) = problems(path)
    assert str(path) in problem
    assert message.replace("{size}", str(size)) in problem


@pytest.mark.parametrize(
    ("kept", "what"), [(0, "shorter than"), (7, "shorter than"), (8, "but its first 8"), (20, "but its first 8")]
)
def test_a_file_that_ends_early_is_refused(tmp_path, kept, what):
    path = shard(tmp_path / "f")
    path.write_bytes(path.read_bytes()[:kept])
    (problem,) = problems(path)
    assert problem.startswith(f"{path}: {kept} bytes long, {what}")
    assert "truncated" in problem


def test_a_file_truncated_by_one_byte_is_refused(tmp_path):
    path = shard(tmp_path / "f")
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems(path)
    assert problem.endswith(f"the file at {path.stat().st_size}: truncated; download or copy the file again")


def test_a_header_beyond_the_limit_of_the_library_is_not_read(tmp_path):
    """Although the file, which is a hole, is large enough for it."""
    with (tmp_path / "f").open("wb") as stream:
        stream.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        stream.truncate(2 * MAX_HEADER_BYTES)
    (problem,) = problems(tmp_path / "f")
    assert "say that a header of 100000001 bytes follows" in problem


def test_all_problems_of_a_file_are_reported_together(tmp_path):
    header = {"a": entry(0, 24, (2, 3), "Q4"), "b": entry(24, 32, (5,)), "c": 3}
    starts = [f"{tmp_path}/f: tensor {name}: " for name in "abc"]
    for problem, start in zip(problems(shard(tmp_path / "f", header)), starts, strict=True):
        assert problem.startswith(start)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path):
    assert problems(tmp_path / "none")[0].startswith(f"{tmp_path}/none: no such file")
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


@pytest.mark.parametrize("name", ["x\0.safetensors", "\ud800.safetensors"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    assert problems(tmp_path / name) == [f"{str(tmp_path / name)!r}: not a name that a file can have"]


def create(path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> dict[str, int]:
    """Write a file without its data; the offset of each tensor."""
    frame = safetensors_frame(tensors)
    write_frame(path, frame)
    return {name: hole for (name, _, _), hole in zip(tensors, frame.holes, strict=True)}


@pytest.fixture(scope="module")
def created(tmp_path_factory):
    return tmp_path_factory.mktemp("created") / "model.safetensors"


@given(TENSORS)
def test_the_reader_finds_every_tensor_where_it_was_put(created, given_tensors):
    tensors = [(f"t.é{number}", dtype, shape) for number, (dtype, shape) in enumerate(given_tensors)]
    offsets = create(created, tensors)
    found = {each.name: each for each in read_header(created)}
    assert {name: (each.dtype, each.shape, each.offset) for name, each in found.items()} == {
        name: (dtype, shape, offsets[name]) for name, dtype, shape in tensors
    }
    end = min(offsets.values(), default=created.stat().st_size)
    assert end % 8 == 0
    for name, dtype, shape in tensors:
        assert offsets[name] == end
        end += prod(shape) * ITEM_SIZE[dtype]
    assert created.stat().st_size == end


def test_the_file_reads_as_zeros_and_as_its_data_when_that_is_written(created):
    arrays = {"b": np.arange(6, dtype="f4").reshape(2, 3), "a": np.arange(5, dtype="u1"), "c": np.zeros((), "f2")}
    offsets = create(created, [(name, array.dtype.name, array.shape) for name, array in arrays.items()])
    assert all(not array.any() for array in load_file(created).values())
    with created.open("r+b") as stream:
        for name, array in arrays.items():
            stream.seek(offsets[name])
            stream.write(array.tobytes())
    found = load_file(created)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_bytes_are_those_of_the_library(created, tmp_path):
    arrays = {"wide": np.zeros((2, 3), "f4"), "a": np.zeros(5, "f2"), "b": np.zeros(3, "f2")}
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    create(created, [(name, array.dtype.name, array.shape) for name, array in arrays.items()])
    assert created.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_the_header_says_that_it_is_of_torch(created):
    create(created, [])
    content = created.read_bytes()
    assert json.loads(content[8:]) == {"__metadata__": {"format": "pt"}}


def test_an_older_file_is_replaced_and_nothing_of_it_shows_through(created):
    created.write_bytes(b"\xff" * 4096)
    offsets = create(created, [("a", "uint8", (64,))])
    assert created.read_bytes()[offsets["a"] :] == bytes(64)
