"""The metadata are those that torch's own planner and writer make for the same chunks, read by torch's own reader."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from distconv.formats.dcp import plan as dcp_plan
from distconv.formats.dcp.blobs import Span, blob_frames, spans_of
from distconv.formats.dcp.metadata import read_metadata
from distconv.formats.dcp.plan import Chunk, DcpPlan, Names, make_dcp_plan
from distconv.formats.dcp.write_metadata import metadata_bytes
from distconv.formats.frame import joined_frames, write_frame
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import SourceFile, StoredTensor, as_stored

Spans = dict[str, list[Span]]

FORMS = st.tuples(st.sampled_from(sorted(ITEM_SIZE)), st.lists(st.integers(0, 6), max_size=3).map(tuple))
NAMES = st.lists(st.text(min_size=1, max_size=4), unique=True, min_size=1, max_size=8)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Chunks and files of a few elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcp_plan, "CHUNK_BYTES", 32)
        patch.setattr(dcp_plan, "_LEAST_FILE_BYTES", 64)
        yield


@st.composite
def plans(draw: st.DrawFn) -> DcpPlan:
    return plan_of({name: draw(FORMS) for name in draw(NAMES)})


def plan_of(forms: dict[str, tuple[str, tuple[int, ...]]]) -> DcpPlan:
    file = SourceFile("/hf/model.safetensors", 1 << 20)
    stored = [StoredTensor(name, *form, file, number) for number, (name, form) in enumerate(forms.items())]
    return make_dcp_plan(as_stored(stored), (), Names(naming="hf"))


def write(directory: Path, plan: DcpPlan) -> Spans:
    """Write files and metadata; the spans of the blobs."""
    spans = {}
    for file in plan.files:
        frames = blob_frames(plan.values_in(file), plan.chunks(file))
        write_frame(directory / file.path, joined_frames(frames))
        spans[file.path] = spans_of(frames)
    (directory / ".metadata").write_bytes(metadata_bytes(plan, spans))
    return spans


class Planner(DefaultSavePlanner):
    """Torch's planner, for the chunks of a plan."""

    def __init__(self, plan: DcpPlan) -> None:
        super().__init__()
        self._plan = plan

    def create_local_plan(self) -> SavePlan:
        items = [WriteItem(index=MetadataIndex("checkpoint_version"), type=WriteItemType.BYTE_IO)]
        items += [item(chunk) for chunks in self._plan.chunks_of_files for chunk in chunks]
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan


class Writer(FileSystemWriter):
    """Torch's writer, without the path and the random number that it records."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


def item(chunk: Chunk) -> WriteItem:
    offsets = torch.Size(chunk.offsets)
    return WriteItem(
        index=MetadataIndex(f"model.{chunk.whole.name}", offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(chunk.tensor.shape)),
            properties=TensorProperties(dtype=getattr(torch, chunk.tensor.dtype)),
            size=torch.Size(chunk.whole.shape),
        ),
    )


def write_with_torch(directory: Path, plan: DcpPlan, spans: Spans) -> None:
    """Have torch plan, check and write the metadata of the same chunks at the same places."""
    tensors = {
        each.name: torch.empty(each.shape, dtype=getattr(torch, each.dtype), device="meta") for each in plan.tensors()
    }
    planner = Planner(plan)
    planner.set_up_planner({"model": tensors, "checkpoint_version": 3.0}, is_coordinator=True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    places = [(file.path, span) for file in plan.files for span in spans[file.path]]
    results = [
        WriteResult(index=item.index, size_in_bytes=length, storage_data=_StorageInfo(path, offset, length))
        for item, (path, (offset, length)) in zip(plans[0].items, places, strict=True)
    ]
    Writer(directory, sync_files=False).finish(metadata, [results])


def described(metadata: Any) -> dict[str, Any]:
    """All that metadata hold; dictionaries with their order, and hints of indices, which equality does not count."""
    fields = vars(metadata)
    places = [(vars(index), vars(place)) for index, place in fields["storage_data"].items()]
    ordered = {key: list(fields[key].items()) for key in ("state_dict_metadata", "planner_data")}
    return {**fields, **ordered, "storage_data": places}


@given(plans())
def test_torch_makes_the_same_metadata(tmp_path_factory, plan):
    ours, its = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("its")
    write_with_torch(its, plan, write(ours, plan))
    found, expected = (
        described(pickle.loads((directory / ".metadata").read_bytes()))  # noqa: S301 - written here
        for directory in (ours, its)
    )
    # Older versions of torch have fewer fields.
    assert {key: found[key] for key in expected} == expected
    read, reference = (FileSystemReader(directory).read_metadata() for directory in (ours, its))
    assert read.storage_meta is not None
    assert reference.storage_meta is not None
    # Made up by each reader.
    read.storage_meta.load_id = reference.storage_meta.load_id
    assert read == reference


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@given(plans())
def test_torch_loads_the_tensors(tmp_path_factory, plan):
    """All zeros: the blobs are as they were created."""
    directory = tmp_path_factory.mktemp("dcp")
    write(directory, plan)
    tensors = {each.name: torch.ones(each.shape).to(getattr(torch, each.dtype)) for each in plan.tensors()}
    state = {"model": tensors, "checkpoint_version": 0.0}
    dcp.load(state, checkpoint_id=directory)
    assert state["checkpoint_version"] == 3.0
    assert not any(tensor.reshape(-1).view(torch.uint8).any() for tensor in tensors.values())


@given(plans())
def test_the_reader_finds_the_chunks(tmp_path_factory, plan):
    directory = tmp_path_factory.mktemp("dcp")
    spans = write(directory, plan)
    found = read_metadata(directory / ".metadata")
    assert tuple(found.blobs) == ("checkpoint_version",)
    assert {name: (entry.dtype, entry.shape) for name, entry in found.tensors.items()} == {
        f"model.{each.name}": (each.dtype, each.shape) for each in plan.tensors()
    }
    expected = {
        (f"model.{chunk.whole.name}", chunk.offsets, chunk.tensor.shape, file.path, *span)
        for file in plan.files
        for chunk, span in zip(plan.chunks(file), spans[file.path][file == plan.files[0] :], strict=True)
    }
    assert {
        (name, chunk.offsets, chunk.sizes, place.file, place.offset, place.length)
        for name, entry in found.tensors.items()
        for chunk in entry.chunks
        for place in chunk.places
    } == expected


def test_the_bytes_depend_on_the_plan_alone(tmp_path):
    plan = plan_of({"a": ("bfloat16", (5, 6)), "b": ("float32", ())})
    for name in "xy":
        (tmp_path / name).mkdir()
        write(tmp_path / name, plan)
    assert (tmp_path / "x" / ".metadata").read_bytes() == (tmp_path / "y" / ".metadata").read_bytes()


def test_torch_is_not_needed(tmp_path):
    code = """
import pathlib, sys
from distconv.formats.dcp.files import DcpFiles
from distconv.formats.dcp.plan import Names, make_dcp_plan
from distconv.formats.frame import write_frame
from distconv.input_output import InputOutput
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import whole
from distconv.transfer.sources import SourceFiles
from distconv.transfer.write import write_beside
plan = make_dcp_plan([NamedTensor((), whole("float32", (3, 2)), "a")], (), Names(naming="hf"))
form, (file,) = DcpFiles(plan), plan.files
write_frame(pathlib.Path(file.path), form.frame(file, list(plan.entries(file))))
write_beside(pathlib.Path(), form.beside(), SourceFiles(), InputOutput(fsync=False))
print("torch" in sys.modules)
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"
    assert set(FileSystemReader(tmp_path).read_metadata().state_dict_metadata) == {"model.a", "checkpoint_version"}
