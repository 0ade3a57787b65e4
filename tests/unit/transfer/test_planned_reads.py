"""What processes ask for is what their steps read; what a node fetches is every byte of that once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.formats.records import Entry
from distconv.planning.assign import assign
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Assembled, LowRank, Quantised, SourceFile, StoredTensor
from distconv.tensors.virtual import chunk, concat, whole
from distconv.transfer import planned_reads as counting
from distconv.transfer.engine import Work
from distconv.transfer.lower import lower
from distconv.transfer.planned_reads import planned_reads
from distconv.transfer.steps import CopyRun, bytes_read
from tests.unit import toy
from tests.unit.buffers import small_lanes
from tests.unit.transfer.test_batches import REQUESTS, Listed, entry, plan, work_of


@settings(max_examples=15)
@given(REQUESTS, st.integers(1, 5), st.sampled_from([2000, 1024 * 1024]))
def test_planned_read_is_what_the_steps_read(request_, processes, buffer_bytes):
    found = plan(**request_)
    for files in assign(found.files, processes):
        counted = sum(
            bytes_read(list(lower([s.tensor for s in each.shards], [s.shape for s in each.sources], buffer_bytes)))
            for each in work_of(found, files)
        )
        assert planned_reads(found, [files], small_lanes(1, buffer_bytes)).asked == [counted]


@settings(max_examples=15)
@given(REQUESTS, st.integers(1, 9), st.sampled_from([2000, 1024 * 1024]))
def test_planned_reads_are_those_of_each_process(request_, processes, buffer_bytes):
    found = plan(**request_)
    shares = assign(found.files, processes)
    assert planned_reads(found, shares, small_lanes(1, buffer_bytes), 2).asked == [
        planned_reads(found, [each], small_lanes(1, buffer_bytes)).asked[0] for each in shares
    ]


def test_what_processes_have_in_common_is_lowered_once():
    found = plan(tp=2, ep=4)
    shares = assign(found.files, len(found.files))
    with patch.object(counting, "lower", side_effect=lower) as lowered:
        planned_reads(found, shares, small_lanes(1, 1024))
    kinds = {id(entry.tensor) for file in found.files for entry in found.entries(file)}
    assert lowered.call_count == len(kinds)


def test_planned_reads_of_one_table_over_different_shapes_are_different():
    """The same box of a wider tensor lies farther apart."""
    box = whole("uint8", (3, 2))
    found = Listed({str(width): [entry((3, width), box, width)] for width in (2, 4)})
    assert planned_reads(found, [found.files], small_lanes(1, 1024)).asked == [3 * 2 + (2 * 4 + 2)]


def test_planned_reads_of_one_table_over_other_element_types_are_different():
    """What is cast takes as many bytes as it is stored in."""
    table = whole("bfloat16", (3, 2))
    entries = {
        dtype: [
            Entry((StoredTensor("w", dtype, (3, 2), SourceFile("/f", 1 << 20), 0),), table, "w", key="", group=dtype)
        ]
        for dtype in ("bfloat16", "float32")
    }
    found = Listed(entries)
    assert planned_reads(found, [found.files], small_lanes(1, 1024)).asked == [3 * 2 * 2 + 3 * 2 * 4]


def quantised(code: str, dtype: str, numbers: str, shape: tuple[int, int]) -> StoredTensor:
    file, bits = SourceFile("/f", 1 << 20), 8 if code == "float8_e4m3fn" else 4
    how = Quantised(code, bits, 1, (1, 1), StoredTensor("w.scales", numbers, shape, file, 0), numbers)
    return StoredTensor("w", dtype, shape, file, 0, how)


def test_planned_reads_of_one_table_over_codes_and_over_numbers_are_different():
    table, file = whole("float32", (3, 2)), SourceFile("/f", 1 << 20)
    sources = {
        "codes": quantised("float8_e4m3fn", "float32", "float32", (3, 2)),
        "numbers": StoredTensor("w", "float32", (3, 2), file, 0),
    }
    found = Listed({name: [Entry((each,), table, "w", key="", group=name)] for name, each in sources.items()})
    assert planned_reads(found, [found.files], small_lanes(1, 1024)).asked == [3 * 2 + 3 * 2 * 4]


def test_planned_reads_depend_on_the_room_that_numbers_need():
    """Two rows at a time with what is between them, or where numbers are wider one."""
    box = whole("bfloat16", (2, 2))
    entries = {
        numbers: [Entry((quantised("int4", "bfloat16", numbers, (2, 16)),), box, "w", key="", group=numbers)]
        for numbers in ("bfloat16", "float32")
    }
    both = Listed(entries)
    alone = [Listed({name: held}) for name, held in entries.items()]
    reads = [planned_reads(each, [each.files], small_lanes(1, 48)).asked[0] for each in alone]
    assert reads[0] != reads[1]
    assert planned_reads(both, [both.files], small_lanes(1, 48)).asked == [sum(reads)]


def test_both_factors_of_a_product_are_read():
    def factor(*shape: int) -> Assembled:
        (stored,) = entry(shape, whole("uint8", shape), 0).sources
        return Assembled((stored,), whole("uint8", shape))

    merged = replace(entry((6, 4), whole("uint8", (6, 4)), 0), low_rank=LowRank(factor(6, 2), factor(2, 4), 0.5))
    found = Listed({"one": [merged, entry((6, 4), whole("uint8", (6, 4)), 1)]})
    assert planned_reads(found, [found.files], small_lanes(1, 1024)).asked == [6 * 4 + 6 * 2 + 2 * 4 + 6 * 4]


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_one_process_reads_the_checkpoint_once_whatever_the_tensor_parallel_size(tp):
    found = plan(tp=tp)
    stored = sum(source.nbytes for source in toy.index().tensors.values())
    assert stored == sum(array.size for array in toy.arrays().values()) * ITEM_SIZE["bfloat16"]
    assert planned_reads(found, [found.files], small_lanes(1, 1024 * 1024)).asked == [stored]


def bytes_of(work: Work, buffer_bytes: int) -> Iterator[tuple[str, int]]:
    """Every byte that is read, by its file and offset."""
    shards, shapes = [each.tensor for each in work.shards], [each.shape for each in work.sources]
    for step in lower(shards, shapes, buffer_bytes):
        for read in [step] if isinstance(step, CopyRun) else step.reads:
            source = work.sources[read.operand]
            start = source.offset + (read.source_offset if isinstance(read, CopyRun) else read.offset)
            yield from ((source.file.path, start + number) for number in range(read.nbytes))


@settings(max_examples=15, deadline=None)
@given(REQUESTS, st.integers(1, 9), st.integers(1, 4), st.sampled_from([2000, 1024 * 1024]))
def test_a_node_fetches_each_byte_once_that_its_processes_read(request_, processes, per_node, buffer_bytes):
    found = plan(**request_)
    shares = assign(found.files, processes)
    with patch.multiple(counting, _PAGE_BYTES=1, _READ_AHEAD_BYTES=0):
        counted = planned_reads(found, shares, small_lanes(1, buffer_bytes), per_node)
    of_nodes = [
        {each for files in shares[start : start + per_node] for work in work_of(found, files)
         for each in bytes_of(work, buffer_bytes)}
        for start in range(0, processes, per_node)
    ]  # fmt: skip
    assert counted.fetched == [len(each) for each in of_nodes]
    assert counted.distinct == len(set().union(*of_nodes))


def read_of(offset: int, size: int) -> Entry:
    stored = StoredTensor("w", "uint8", (1000,), SourceFile("/hf/model.safetensors", size), offset)
    return Entry((stored,), whole("uint8", (1000,)), "w", key="", group=offset)


@pytest.mark.parametrize(
    ("offsets", "size", "expected"),
    [
        # Up to the end of the page in which reading ahead ends.
        ([0], 1 << 20, 33 * 4096),
        ([5000], 1 << 20, 33 * 4096),
        # One after the other, a gap that is read ahead, and one that is not.
        ([0, 1000], 1 << 20, 33 * 4096),
        ([0, 100_000], 1 << 20, 57 * 4096),
        ([0, 500_000], 1 << 20, 33 * 4096 + 33 * 4096),
        # No further than the file.
        ([5000], 6000, 6000 - 4096),
    ],
)
def test_whole_pages_are_fetched_and_what_is_read_ahead(offsets, size, expected):
    found = Listed({"one": [read_of(each, size) for each in offsets]})
    assert planned_reads(found, [found.files], small_lanes(1, 1 << 20), 1).fetched == [expected]


def test_a_node_fetches_scales_beside_codes_and_the_factors_of_a_product():
    file, table = SourceFile("/codes", 1 << 20), whole("bfloat16", (64, 64))
    scales = StoredTensor("w.scales", "float32", (2, 2), SourceFile("/scales", 1 << 20), 0)
    how = Quantised("float8_e4m3fn", 8, 1, (32, 32), scales, "float32")
    left, right = chunk(table, 2, dim=0)
    stored = StoredTensor("w", "bfloat16", (64, 64), file, 0, how)
    factor = Assembled((StoredTensor("b", "uint8", (8, 2), SourceFile("/b", 16), 0),), whole("uint8", (8, 2)))
    other = Assembled((StoredTensor("a", "uint8", (2, 8), SourceFile("/a", 16), 0),), whole("uint8", (2, 8)))
    merged = replace(entry((8, 8), whole("uint8", (8, 8)), 0), low_rank=LowRank(factor, other, 0.5))
    found = Listed(
        {
            "upper": [Entry((stored,), left, "w", key="", group=0)],
            "lower": [Entry((stored,), right, "w", key="", group=0)],
            "merged": [merged],
        }
    )
    shares = [[each] for each in found.files]
    merging = planned_reads(found, shares[2:], small_lanes(1, 1 << 20)).sources
    assert merging == [{merged.sources[0].file.path: 64, "/a": 16, "/b": 16}]
    with patch.multiple(counting, _PAGE_BYTES=1, _READ_AHEAD_BYTES=0):
        assert planned_reads(found, shares, small_lanes(1, 1 << 20), 1).fetched == [2048 + 8, 2048 + 8, 64 + 16 + 16]
        assert planned_reads(found, shares, small_lanes(1, 1 << 20), 2).fetched == [4096 + 16, 64 + 16 + 16]


def test_of_nodes_that_are_not_known_nothing_is_said():
    found = plan(tp=2)
    counted = planned_reads(found, assign(found.files, 2), small_lanes(1, 1024))
    assert (counted.fetched, counted.distinct) == ([], 0)


def test_what_is_read_is_told_of_each_file():
    sources = tuple(StoredTensor(name, "uint8", (4, 2), SourceFile(f"/{name}", 64), 0) for name in "ab")
    first, second = whole("uint8", (4, 2)), whole("uint8", (4, 2), operand=1)
    joined = Entry(sources, concat([first, chunk(second, 2, dim=0)[0]], 0), "w", key="", group=0)
    found = Listed({"file": [joined]})
    assert planned_reads(found, [found.files], small_lanes(1, 1024)).sources == [{"/a": 8, "/b": 4}]
