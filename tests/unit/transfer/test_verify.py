"""A result that is what its source says has no difference; everything else is named. Torch writes the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.commit.journal import Journal
from distconv.formats.megatron.files import MegatronFiles
from distconv.formats.megatron.plan import MegatronPlan
from distconv.input_output import InputOutput
from distconv.tensors.compose import box_of
from distconv.tensors.replicas import Replica
from distconv.tensors.stored import Assembled, SourceFile, StoredTensor
from distconv.tensors.virtual import whole
from distconv.transfer import lower as lowering
from distconv.transfer.means import Means
from distconv.transfer.planned_reads import planned_reads
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from distconv.transfer.verify import Compared, compare_files, comparison
from distconv.transfer.write import write_files
from tests.unit.buffers import small_buffers
from tests.unit.reference import evaluate
from tests.unit.toy_files import planned

IO, BUFFERS = InputOutput(fsync=False), small_buffers(1)
PATH = "mp_rank_01/model_optim_rng.pt"
QKV = "text.layers.0.qkv.weight"


def means(sources: SourceFiles, counters: Counters) -> Means:
    return Means(io=IO, counters=counters, sources=sources, buffers=BUFFERS, must_stop=lambda: False)


@pytest.fixture
def plan(tmp_path: Path) -> MegatronPlan:
    """With a result beside it."""
    found = planned(tmp_path, tp=2)
    (tmp_path / "release").mkdir()
    form = MegatronFiles(found.dictionaries)
    with SourceFiles() as sources:
        counters = Counters(lambda _: None)
        write_files(
            found,
            found.files,
            tmp_path / "release",
            form,
            means(sources, counters),
            Journal(tmp_path, 0, durable=False),
        )
    return found


def compared(plan: MegatronPlan, directory: Path) -> Compared:
    portions: list[int] = []
    counters = Counters(portions.append)
    form = MegatronFiles(plan.dictionaries)
    with SourceFiles() as sources:
        found = compare_files(plan, plan.files, directory / "release", form, means(sources, counters))
    assert counters.written == 0
    assert sum(portions) == sum(file.nbytes for file in plan.files)
    return found


def differences(plan: MegatronPlan, directory: Path) -> list[str]:
    return [line.replace(f"{directory}/release/", "") for line in compared(plan, directory).differences]


def test_a_result_is_what_its_source_says(plan, tmp_path):
    assert differences(plan, tmp_path) == []


@pytest.mark.parametrize("run_bytes", [1, 64 * 1024])
def test_both_sides_of_what_is_compared_are_counted_and_what_is_done_once(plan, tmp_path, run_bytes):
    portions: list[int] = []
    counters = Counters(portions.append)
    form = MegatronFiles(plan.dictionaries)
    with patch.object(lowering, "MIN_RUN_BYTES", run_bytes), SourceFiles() as sources:
        compare_files(plan, plan.files, tmp_path / "release", form, means(sources, counters))
        (read,) = planned_reads(plan, [plan.files], BUFFERS.lanes).asked
    assert counters.read == read + sum(file.nbytes for file in plan.files)
    assert sum(portions) == sum(file.nbytes for file in plan.files)
    assert counters.written == 0


def test_one_byte_of_any_tensor_is_seen(plan, tmp_path):
    file = plan.files[1]
    found = {}
    for entry in plan.entries(file):
        content = torch.load(tmp_path / "release" / PATH, weights_only=True)
        kept = content[entry.key][entry.name].clone()
        content[entry.key][entry.name].view(-1).view(torch.uint8)[-1] ^= 1
        torch.save(content, tmp_path / "release" / PATH)
        found[entry.name] = differences(plan, tmp_path)
        content[entry.key][entry.name] = kept
        torch.save(content, tmp_path / "release" / PATH)
    assert found == {name: [f"{PATH}: model/{name} differs from the source"] for name in found}
    assert len(found) == sum(1 for _ in plan.entries(file))


def retype(model: dict[str, Any]) -> None:
    model[QKV] = model[QKV].float()


def reshape(model: dict[str, Any]) -> None:
    model[QKV] = model[QKV][:, 1:].contiguous()


def turn(model: dict[str, Any]) -> None:
    model[QKV] = model[QKV].t().contiguous().t()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: model.pop(QKV), [f"model/{QKV} is missing"]),
        (lambda model: model.update(other=torch.zeros(2)), ["model/other is not expected"]),
        (lambda model: model.update({QKV: "text"}), [f"model/{QKV} is missing"]),
        (retype, [f"model/{QKV} is float32 [16, 16], expected bfloat16 [16, 16]"]),
        (reshape, [f"model/{QKV} is bfloat16 [16, 15], expected bfloat16 [16, 16]"]),
        (turn, [f"model/{QKV} is not contiguous"]),
    ],
)
def test_what_is_in_a_dictionary_is_compared(plan, tmp_path, change: Callable[[dict[str, Any]], None], expected):
    content = torch.load(tmp_path / "release" / PATH, weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "release" / PATH)
    assert differences(plan, tmp_path) == [f"{PATH}: {line}" for line in expected]


def test_the_rest_of_a_file_is_compared(plan, tmp_path):
    content = torch.load(tmp_path / "release" / PATH, weights_only=True)
    torch.save({**content, "checkpoint_version": 2.0}, tmp_path / "release" / PATH)
    assert differences(plan, tmp_path) == [f"{PATH}: checkpoint_version is 2.0, expected 3.0"]
    torch.save({"checkpoint_version": 3.0, "model0": content["model"]}, tmp_path / "release" / PATH)
    found = differences(plan, tmp_path)
    assert found[0] == f"{PATH}: has no model"
    assert len(found) == 1 + len(content["model"])


def test_a_missing_and_a_damaged_file_are_differences(plan, tmp_path):
    path = tmp_path / "release" / PATH
    path.write_bytes(path.read_bytes()[:-100])
    (line,) = differences(plan, tmp_path)
    assert line.startswith(f"{PATH}: truncated, or not in the zip format")
    path.unlink()
    assert differences(plan, tmp_path) == [f"{PATH}: cannot be compared: No such file or directory"]


def test_what_torch_wrote_is_compared_by_its_tensors_and_said(plan, tmp_path):
    path = tmp_path / "release" / PATH
    torch.save(torch.load(path, weights_only=True), path)
    found = compared(plan, tmp_path)
    assert found.differences == []
    assert found.notes == [
        f"{path}: was written by torch, as earlier versions did; its tensors were compared, not its frame"
    ]


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:50] + b"\1" + data[51:]])
def test_a_frame_of_another_form_that_torch_did_not_write_is_a_difference(plan, tmp_path, change):
    path = tmp_path / "release" / PATH
    data = path.read_bytes()
    path.write_bytes(change(data))
    at = 50 if len(path.read_bytes()) == len(data) else len(data)
    assert differences(plan, tmp_path) == [f"{PATH}: differs from what is written today at byte {at:,}"]


@given(st.data())
def test_a_box_anywhere_in_storage_is_compared_at_its_place(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    start = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    lengths = tuple(data.draw(st.integers(1, size - low)) for size, low in zip(shape, start, strict=True))
    storage = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    content = storage[tuple(slice(low, low + size) for low, size in zip(start, lengths, strict=True))]
    file = SourceFile("/x", 1 << 20)
    copy = Assembled(
        (StoredTensor("copy", "float32", shape, file, 64),), box_of(whole("float32", shape), start, lengths)
    )
    original = Assembled((StoredTensor("original", "float32", lengths, file, 0),), whole("float32", lengths))

    work = comparison(Replica(original, copy))

    found = np.full(storage.size, -1, np.float32)
    for shard in work.shards:
        run = evaluate(shard.tensor, [content]).reshape(-1)
        first = (shard.offset - 64) // 4
        assert (found[first : first + run.size] == -1).all()
        found[first : first + run.size] = run
    np.testing.assert_array_equal(np.sort(found[found >= 0]), np.sort(content.reshape(-1)))
    np.testing.assert_array_equal(found[found >= 0], storage.reshape(-1)[found >= 0])
