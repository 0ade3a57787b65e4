"""A DCP plan: every tensor in chunks that tile it, in files whose sizes depend on nothing but the tensors."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import JobError
from distconv.formats.dcp import plan as dcp_plan
from distconv.formats.dcp.plan import Chunk, DcpPlan, Names, make_dcp_plan
from distconv.planning.assign import assign
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor, SourceFile, StoredTensor, position
from distconv.tensors.virtual import VirtualTensor, concat, whole
from tests.unit.reference import evaluate

# Small sizes in the proportions of the real ones.
CHUNK, LEAST, ENOUGH = 64, 128, 8
DTYPES = ("uint8", "bfloat16", "float32")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(dcp_plan, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(dcp_plan, "_LEAST_FILE_BYTES", LEAST)
    monkeypatch.setattr(dcp_plan, "_ENOUGH_FILES", ENOUGH)


def stored(name: str, dtype: str, shape: tuple[int, ...], file: str = "a", offset: int = 0) -> StoredTensor:
    return StoredTensor(name, dtype, shape, SourceFile(f"/hf/{file}.safetensors", 1 << 40), offset)


def as_it_is(source: StoredTensor) -> NamedTensor:
    return NamedTensor((source,), whole(source.dtype, source.shape), source.name)


@st.composite
def checkpoints(draw: st.DrawFn) -> list[NamedTensor]:
    """Tensors of any rank, with empty dims, at any places of two files."""
    shapes = draw(st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=12))
    return [
        as_it_is(stored(f"t{number}", draw(st.sampled_from(DTYPES)), shape, draw(st.sampled_from("ab")), number))
        for number, shape in enumerate(shapes)
    ]


def plan(tensors: list[NamedTensor]) -> DcpPlan:
    return make_dcp_plan(tensors, (), Names(naming="hf", dialect="mine", prefix="model."))


def chunks(found: DcpPlan) -> list[Chunk]:
    return [chunk for file in found.files for chunk in found.chunks(file)]


def nbytes(tensor: VirtualTensor) -> int:
    return prod(tensor.shape) * ITEM_SIZE[tensor.dtype]


@given(checkpoints())
def test_chunks_tile_every_tensor_and_hold_what_is_there(tensors):
    written = {each.name: np.zeros(each.tensor.shape, int) for each in tensors}
    met = set()
    for chunk in chunks(plan(tensors)):
        shape = chunk.whole.shape
        values = np.arange(1, prod(shape) + 1).reshape(shape)
        box = tuple(slice(low, low + length) for low, length in zip(chunk.offsets, chunk.tensor.shape, strict=True))
        assert (written[chunk.whole.name][box] == 0).all()
        written[chunk.whole.name][box] = evaluate(chunk.tensor, [values])
        met.add(chunk.whole.name)

    assert met == set(written)
    for array in written.values():
        assert (array.ravel() == np.arange(1, array.size + 1)).all()


@given(checkpoints())
def test_a_chunk_is_contiguous_and_small_and_keeps_its_element_type(tensors):
    for chunk in chunks(plan(tensors)):
        shape, piece = chunk.whole.shape, chunk.tensor.shape
        cut = next((dim for dim in range(len(shape)) if piece[dim] != 1), len(shape))
        assert piece[cut + 1 :] == shape[cut + 1 :]
        assert nbytes(chunk.tensor) <= CHUNK
        assert chunk.tensor.dtype == chunk.whole.dtype


def test_no_more_chunks_than_needed():
    found = plan([as_it_is(stored("t", "uint8", (10, 16)))])
    assert [(chunk.offsets, chunk.tensor.shape) for chunk in chunks(found)] == [
        ((0, 0), (4, 16)),
        ((4, 0), (4, 16)),
        ((8, 0), (2, 16)),
    ]


@given(checkpoints(), st.randoms())
def test_the_order_of_the_tensors_does_not_matter(tensors, random):
    shuffled = list(tensors)
    random.shuffle(shuffled)
    assert plan(shuffled) == plan(tensors)


@given(checkpoints())
def test_chunks_are_in_the_order_in_which_their_sources_are_stored(tensors):
    positions = [(position(chunk.sources), chunk.key, chunk.offsets) for chunk in chunks(plan(tensors))]
    assert positions == sorted(positions)


@given(checkpoints())
def test_files_are_full_and_none_is_empty_but_the_only_one(tensors):
    found = plan(tensors)
    total = sum(nbytes(each.tensor) for each in tensors)
    size = max(LEAST, total // ENOUGH)

    assert [file.nbytes for file in found.files] == [
        sum(nbytes(chunk.tensor) for chunk in found.chunks(file)) for file in found.files
    ]
    assert sum(file.nbytes for file in found.files) == total
    assert all(size <= file.nbytes < size + CHUNK for file in found.files[:-1])
    assert all(found.chunks(file) for file in found.files) or len(found.files) == 1
    assert len(found.files) <= ENOUGH + 1
    assert [file.path for file in found.files] == [f"__{number}_0.distcp" for number in range(len(found.files))]


@given(checkpoints(), st.integers(1, 5))
def test_every_file_has_one_writer(tensors, processes):
    found = plan(tensors)
    assert [file for files in assign(found.files, processes) for file in files] == list(found.files)


@given(checkpoints())
def test_entries_can_be_told_apart(tensors):
    """By tensor and place, so the format finds the data of each; and each is made by itself."""
    found = plan(tensors)
    entries = [entry for file in found.files for entry in found.entries(file)]
    assert len({(entry.key, entry.name) for entry in entries}) == len(entries)
    assert len({entry.group for entry in entries}) == len(entries)


def test_a_chunk_of_a_merged_tensor_takes_its_share_of_each_source():
    sources = tuple(stored(name, "uint8", (4, 16), offset=64 * number) for number, name in enumerate("gu"))
    merged = NamedTensor(sources, concat([whole("uint8", (4, 16), 0), whole("uint8", (4, 16), 1)]), "fc1")

    found = chunks(plan([merged]))

    assert [chunk.offsets for chunk in found] == [(0, 0), (4, 0)]
    assert [{copy.operand for copy in chunk.tensor.copies} for chunk in found] == [{0}, {1}]
    assert all(chunk.sources is sources for chunk in found)


def test_tensors_that_look_alike_share_their_chunks():
    """So a plan of many layers is a few tables."""
    alike = whole("uint8", (10, 16))
    tensors = [NamedTensor((stored(name, "uint8", (10, 16)),), alike, name) for name in "ab"]

    found = chunks(plan(tensors))

    assert [chunk.whole.name for chunk in found] == ["a"] * 3 + ["b"] * 3
    assert all(one.tensor is other.tensor for one, other in zip(found[:3], found[3:], strict=True))


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(JobError, match="would be written twice: t"):
        plan([as_it_is(stored("t", "uint8", (2,), offset=offset)) for offset in (0, 2)])


def test_the_summary_counts_and_shows_a_name():
    tensors = [as_it_is(stored("large", "uint8", (10, 16))), as_it_is(stored("small", "uint8", (), offset=160))]
    names = {"naming": "hf", "dialect": "mine", "prefix": "model."}
    assert plan(tensors).summary() == {"dcp": {**names, "example": "large", "tensors": 2, "chunks": 4}}
    assert plan([]).summary() == {"dcp": {**names, "example": None, "tensors": 0, "chunks": 0}}
