"""The work of a process covers its files, shares what it reads, and is what `action=plan` counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.formats.megatron.plan import MegatronPlan, make_plan
from distconv.formats.records import Entry, OutputFile, Plan
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.models.parameters import Unconverted
from distconv.planning.assign import assign
from distconv.tensors.stored import SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, chunk, whole
from distconv.transfer.batches import batches
from distconv.transfer.engine import Work
from distconv.transfer.planned_reads import planned_reads
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
    assert planned_reads(found, [found.files], small_lanes(1, 1024)).asked == [24]
    apart = Listed({"one": [entry((6, 4), left, 0)], "two": [entry((6, 4), right, 1)]})
    assert [[shard.path for shard in each.shards] for each in work_of(apart, apart.files)] == [["one"], ["two"]]
    assert planned_reads(apart, [apart.files], small_lanes(1, 1024)).asked == [22 + 22]


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
