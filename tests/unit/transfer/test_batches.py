"""The work of a process covers its files, shares what it reads, and is what `action=plan` counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.formats.megatron.plan import MegatronPlan, make_plan
from distconv.formats.records import Entry, OutputFile, Plan
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.models.parameters import Unconverted
from distconv.planning.assign import assign
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Assembled, LowRank, Quantised, SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, chunk, whole
from distconv.transfer import batches as work
from distconv.transfer.batches import batches, planned_reads
from distconv.transfer.engine import Work
from distconv.transfer.lower import lower
from distconv.transfer.steps import bytes_read
from tests.unit import toy
from tests.unit.buffers import small_lanes

REQUESTS = st.fixed_dictionaries(
    {
        "tp": st.sampled_from([1, 2, 4]),
        "ep": st.sampled_from([1, 2, 4]),
        "modality_tp": st.sampled_from([{}, {"vision": 2}, {"vision": 8}]),
        "stages": st.sampled_from([{}, {"text": ((1, 0, 2),)}, {"text": ((1, 0), (0, 2))}]),
    }
).filter(lambda request: request["tp"] <= request["modality_tp"].get("vision", 8))


def plan(**request: Any) -> MegatronPlan:
    binding = toy.bound()
    return make_plan(binding, complete_layout(Layout(**request), binding, toy.definition()))


def work_of(found: Plan, files: Sequence[OutputFile]) -> list[Work]:
    """All the work for these files; paths are those of the plan, offsets are made up but different."""
    result = []
    for batch in batches(found, files):
        offsets = {}
        for file, entries in batch.files.items():
            for entry in entries:
                offsets[file, entry.key, entry.name] = len(offsets)
        result += batch.work({file: file.path for file in batch.files}, offsets)
    return result


@settings(max_examples=30)
@given(REQUESTS, st.integers(1, 5))
def test_the_work_of_all_processes_is_every_entry_of_every_file_once(request_, processes):
    found = plan(**request_)
    done = Counter(
        (shard.path, id(shard.tensor), tuple(source.name for source in each.sources))
        for files in assign(found.files, processes)
        for each in work_of(found, files)
        for shard in each.shards
    )
    wanted = Counter(
        (file.path, id(entry.tensor), tuple(source.name for source in entry.sources))
        for file in found.files
        for entry in found.entries(file)
    )
    assert done == wanted


@settings(max_examples=15)
@given(REQUESTS, st.integers(1, 5), st.sampled_from([2000, 1024 * 1024]))
def test_planned_read_is_what_the_steps_read(request_, processes, buffer_bytes):
    found = plan(**request_)
    for files in assign(found.files, processes):
        counted = sum(
            bytes_read(list(lower([s.tensor for s in each.shards], [s.shape for s in each.sources], buffer_bytes)))
            for each in work_of(found, files)
        )
        assert planned_reads(found, [files], small_lanes(1, buffer_bytes)) == [counted]


@settings(max_examples=15)
@given(REQUESTS, st.integers(1, 9), st.sampled_from([2000, 1024 * 1024]))
def test_planned_reads_are_those_of_each_process(request_, processes, buffer_bytes):
    found = plan(**request_)
    shares = assign(found.files, processes)
    assert planned_reads(found, shares, small_lanes(1, buffer_bytes)) == [
        planned_reads(found, [each], small_lanes(1, buffer_bytes))[0] for each in shares
    ]


def test_what_processes_have_in_common_is_lowered_once():
    found = plan(tp=2, ep=4)
    shares = assign(found.files, len(found.files))
    with patch.object(work, "lower", side_effect=lower) as lowered:
        planned_reads(found, shares, small_lanes(1, 1024))
    kinds = {id(entry.tensor) for file in found.files for entry in found.entries(file)}
    assert lowered.call_count == len(kinds)


def test_offsets_and_paths_are_those_given_for_each_file_key_and_name():
    found = plan(tp=2, stages={"text": ((1,), (2,))})
    (batch,) = batches(found, found.files)
    numbers = {}
    for file, entries in batch.files.items():
        for entry in entries:
            numbers[file, entry.key, entry.name] = len(numbers)
    paths = {file: f"/staging/{file.path}" for file in found.files}
    by_offset = {shard.offset: shard for each in batch.work(paths, numbers) for shard in each.shards}
    for (file, key, name), offset in numbers.items():
        (entry,) = [each for each in batch.files[file] if (each.key, each.name) == (key, name)]
        assert by_offset[offset].path == paths[file]
        assert by_offset[offset].tensor is entry.tensor


@dataclass(frozen=True)
class Listed:
    """A plan whose entries are given, by the path of their file."""

    by_path: Mapping[str, Sequence[Entry]]
    unconverted: tuple[Unconverted, ...] = ()

    @property
    def files(self) -> tuple[OutputFile, ...]:
        return tuple(OutputFile(path=path, nbytes=0, order=(), batch=0) for path in self.by_path)

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        return iter(self.by_path[file.path])

    def summary(self) -> dict[str, Any]:
        return {}


def entry(shape: tuple[int, ...], tensor: VirtualTensor, group: int) -> Entry:
    stored = StoredTensor("w", "uint8", shape, SourceFile("/hf/model.safetensors", 1 << 20), 0)
    return Entry((stored,), tensor, "w", key="", group=group)


def test_a_read_is_shared_within_a_group_and_not_beyond():
    """Whatever else the entries have in common: neither their objects nor their names decide."""
    table = whole("uint8", (6, 4))
    left, right = chunk(table, 2, dim=1)
    found = Listed({"one": [entry((6, 4), left, 0)], "two": [entry((6, 4), right, 0)]})
    assert [[shard.path for shard in each.shards] for each in work_of(found, found.files)] == [["one", "two"]]
    assert planned_reads(found, [found.files], small_lanes(1, 1024)) == [24]
    apart = Listed({"one": [entry((6, 4), left, 0)], "two": [entry((6, 4), right, 1)]})
    assert [[shard.path for shard in each.shards] for each in work_of(apart, apart.files)] == [["one"], ["two"]]
    assert planned_reads(apart, [apart.files], small_lanes(1, 1024)) == [22 + 22]


def test_planned_reads_of_one_table_over_different_shapes_are_different():
    """The same box of a wider tensor lies farther apart."""
    box = whole("uint8", (3, 2))
    found = Listed({str(width): [entry((3, width), box, width)] for width in (2, 4)})
    assert planned_reads(found, [found.files], small_lanes(1, 1024)) == [3 * 2 + (2 * 4 + 2)]


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
    assert planned_reads(found, [found.files], small_lanes(1, 1024)) == [3 * 2 * 2 + 3 * 2 * 4]


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
    assert planned_reads(found, [found.files], small_lanes(1, 1024)) == [3 * 2 + 3 * 2 * 4]


def test_planned_reads_depend_on_the_room_that_numbers_need():
    """Two rows at a time with what is between them, or where numbers are wider one."""
    box = whole("bfloat16", (2, 2))
    entries = {
        numbers: [Entry((quantised("int4", "bfloat16", numbers, (2, 16)),), box, "w", key="", group=numbers)]
        for numbers in ("bfloat16", "float32")
    }
    both = Listed(entries)
    alone = [Listed({name: held}) for name, held in entries.items()]
    reads = [planned_reads(each, [each.files], small_lanes(1, 48))[0] for each in alone]
    assert reads[0] != reads[1]
    assert planned_reads(both, [both.files], small_lanes(1, 48)) == [sum(reads)]


def test_both_factors_of_a_product_are_read():
    def factor(*shape: int) -> Assembled:
        (stored,) = entry(shape, whole("uint8", shape), 0).sources
        return Assembled((stored,), whole("uint8", shape))

    merged = replace(entry((6, 4), whole("uint8", (6, 4)), 0), low_rank=LowRank(factor(6, 2), factor(2, 4), 0.5))
    found = Listed({"one": [merged, entry((6, 4), whole("uint8", (6, 4)), 1)]})
    assert planned_reads(found, [found.files], small_lanes(1, 1024)) == [6 * 4 + 6 * 2 + 2 * 4 + 6 * 4]


def test_shards_of_one_parameter_are_produced_together():
    found = plan(tp=2, ep=2, stages={"text": ((1, 2),)})
    for each in work_of(found, found.files):
        # Its two tensor parallel ranks, and for all but experts both expert parallel ranks.
        assert len(each.shards) == (2 if "experts" in each.sources[0].name else 4)
        assert len({shard.path for shard in each.shards}) == len(each.shards)


def test_a_batch_is_the_files_of_one_pipeline_rank():
    found = plan(tp=2, stages={"text": ((1, 0, 2),)})
    assert [sorted(file.pp_rank for file in batch.files) for batch in batches(found, found.files)] == [
        [0, 0], [1, 1], [2, 2]
    ]  # fmt: skip


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_one_process_reads_the_checkpoint_once_whatever_the_tensor_parallel_size(tp):
    found = plan(tp=tp)
    stored = sum(source.nbytes for source in toy.index().tensors.values())
    assert stored == sum(array.size for array in toy.arrays().values()) * ITEM_SIZE["bfloat16"]
    assert planned_reads(found, [found.files], small_lanes(1, 1024 * 1024)) == [stored]
