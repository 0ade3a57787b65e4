"""Reading a DCP as `torch.distributed.checkpoint` does, one stored chunk at a time. Imports torch.

Owns the requests. The metadata is a pickle, which torch executes: callers compare its bytes first.
"""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from distconv.errors import named
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.dcp.plan import DcpPlan
from distconv.formats.readers import Form, Key, Reader, ReadFile, reading_by
from distconv.formats.records import OutputFile
from distconv.formats.torch_tensors import bytes_of, name_of
from distconv.tensors.virtual import Index


class DcpReader(Reader):
    """`FileSystemReader` of the files of `plan`; the metadata is read once."""

    name = "torch.distributed.checkpoint"

    def __init__(self, plan: DcpPlan) -> None:
        self._plan = plan
        self._checkpoint: _Checkpoint | None = None

    def open(self, directory: Path, file: OutputFile) -> ReadFile:
        """The chunks that the metadata has in a file, with the names of entries."""
        checkpoint, path = self._opened(directory), directory / file.path
        names = {(self._plan.full_name(each.whole), each.offsets): each for each in self._plan.chunks(file)}
        forms: dict[Key, Form] = {}
        found: dict[Key, MetadataIndex] = {}
        with reading_by(self.name, path):
            for index in checkpoint.by_file.get(file.path, ()):
                offsets = tuple(index.offset or ())
                planned = names.get((index.fqn, offsets))
                key = (index.fqn, f"chunk {list(offsets)}") if planned is None else (planned.key, planned.name)
                forms[key], found[key] = checkpoint.form(index), index

        def data(key: Key) -> memoryview:
            with reading_by(self.name, path):
                return bytes_of(checkpoint.tensor(found[key]))

        return ReadFile(forms=forms, data=data, is_mapped=False)

    def beside(self, directory: Path) -> list[str]:
        """What the metadata says of whole tensors, and the values that are none."""
        path = directory / METADATA
        checkpoint = self._opened(directory)
        expected = {self._plan.full_name(each): (each.dtype, each.shape) for each in self._plan.tensors()}
        values = {key: value for value in self._plan.values for key in value.keys}
        with reading_by(self.name, path):
            entries = checkpoint.entries
            found = {name: _form(each) for name, each in entries.items() if isinstance(each, TensorStorageMetadata)}
            others = {name for name, each in entries.items() if isinstance(each, BytesStorageMetadata)}
            differences = [
                f"{path}: {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
                for name in sorted(expected.keys() | found.keys())
                if found.get(name) != expected.get(name)
            ]
            if missing := sorted(values.keys() - others):
                differences.append(f"{path}: has no values {named(missing)}")
            if added := sorted(others - values.keys()):
                differences.append(f"{path}: has values that are not expected: {named(added)}")
        if differences:
            return differences
        # All values are in the first file.
        path = directory / self._plan.files[0].path
        with reading_by(self.name, path):
            return [
                f"{path}: the value {name} is another than what was to be written"
                for name, value in values.items()
                if checkpoint.value(name) != b"".join(data for _, data in value.frame.pieces)
            ]

    def _opened(self, directory: Path) -> _Checkpoint:
        if self._checkpoint is None:
            with reading_by(self.name, directory / METADATA):
                self._checkpoint = _Checkpoint(directory)
        return self._checkpoint


class _Checkpoint:
    """A checkpoint whose metadata has been read: `entries` by name, and the chunks in each file."""

    def __init__(self, directory: Path) -> None:
        self._storage = FileSystemReader(directory)
        # torch holds several copies of a chunk while it loads one.
        self._reading = threading.Lock()
        metadata = self._storage.read_metadata()
        self._storage.set_up_storage_reader(metadata, is_coordinator=False)
        self.entries: dict[str, Any] = metadata.state_dict_metadata
        self.by_file: dict[str, list[MetadataIndex]] = defaultdict(list)
        for index, place in metadata.storage_data.items():
            if isinstance(self.entries.get(index.fqn), TensorStorageMetadata):
                self.by_file[place.relative_path].append(index)
        # Many names may mean one value.
        self._values: dict[Any, bytes] = {}

    def form(self, index: MetadataIndex) -> Form:
        """The element type of a chunk, and its shape."""
        entry = self.entries[index.fqn]
        chunk = entry.chunks[index.index]
        if index.offset != chunk.offsets:
            chunk = next(each for each in entry.chunks if each.offsets == index.offset)
        return name_of(entry.properties.dtype), tuple(chunk.sizes)

    def tensor(self, index: MetadataIndex) -> torch.Tensor:
        """A chunk, as it is loaded into a tensor of the type and shape that the metadata says."""
        _, shape = self.form(index)
        tensor = torch.empty(shape, dtype=self.entries[index.fqn].properties.dtype)
        self._read(_request(LoadItemType.TENSOR, index, shape), _Into(tensor=tensor))
        return tensor

    def value(self, name: str) -> bytes:
        """The bytes of a value that `torch.load` takes."""
        index = MetadataIndex(name)
        place = self._storage.storage_data[index]
        span = place.relative_path, place.offset, place.length
        if span not in self._values:
            planner = _Into()
            self._read(_request(LoadItemType.BYTE_IO, index, (0,)), planner)
            torch.load(io.BytesIO(planner.value), weights_only=True)
            self._values[span] = planner.value
        return self._values[span]

    def _read(self, request: ReadItem, planner: _Into) -> None:
        with self._reading:
            self._storage.read_data(LoadPlan([request]), planner).wait()


class _Into(DefaultLoadPlanner):
    """A planner of torch that loads one thing: a tensor, or a value as bytes."""

    def __init__(self, tensor: torch.Tensor | None = None) -> None:
        super().__init__()
        self._tensor = tensor
        self.value = b""

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:  # noqa: ARG002 - of torch's interface
        """The tensor that is filled."""
        assert self._tensor is not None
        return self._tensor

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:  # noqa: ARG002
        """Keep the bytes of a value."""
        self.value = value.getvalue()


def _request(kind: LoadItemType, index: MetadataIndex, shape: Index) -> ReadItem:
    """The request of all of a chunk, or of a value."""
    start = partial(torch.Size, (0,) * len(shape))
    return ReadItem(
        type=kind,
        dest_index=index,
        dest_offsets=start(),
        storage_index=index,
        storage_offsets=start(),
        lengths=torch.Size(shape),
    )


def _form(entry: TensorStorageMetadata) -> Form:
    return name_of(entry.properties.dtype), tuple(entry.size)
