"""Reading `.metadata` of a torch.distributed.checkpoint directory: tensors, their chunks, and the chunks' positions.

The file is a pickle, and torch executes it. Here it is read as data: the few names that torch writes become records of
this module, every other name is refused, and nothing is ever imported or called. Needs no torch, opens no other file.
Format: `torch/distributed/checkpoint/metadata.py`, and `_StorageInfo` in `filesystem.py`.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if, reading
from distconv.formats.torch_zip.archive import LARGEST_INDEX, MOST_DIMS
from distconv.formats.torch_zip.inert_pickle import Inert, InertUnpickler, StandIn, first_words
from distconv.runtime.identity import read_whole
from distconv.tensors.stored import SourceFile, is_file_name
from distconv.tensors.virtual import Index

METADATA = ".metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The position of a chunk: the bytes `offset` to `offset + length` of a file of the directory.

    `transforms`: the names of transformations of these bytes, such as compression; empty in most checkpoints.
    """

    file: str
    offset: int
    length: int
    transforms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A box of a tensor, and all its positions in the metadata, exactly one in a sound checkpoint."""

    offsets: Index
    sizes: Index
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor: torch's name of its element type, its full shape, and its chunks."""

    dtype: str
    shape: Index
    chunks: tuple[Chunk, ...]

    @property
    def filled(self) -> list[Chunk]:
        """The chunks that hold elements; whether and where the others are stored does not matter."""
        return [chunk for chunk in self.chunks if prod(chunk.sizes)]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The tensors of a checkpoint by flat name, and the places of its other entries (numbers, hyperparameters, rng).

    `files`: the bytes that each file has at least, by its name.
    """

    tensors: Mapping[str, Entry]
    blobs: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)


def read_metadata(path: Path, seen: list[SourceFile] | None = None) -> Metadata:
    """Read a `.metadata` file; the identity of one on which a job relies is added to `seen`.

    Raises:
        InputError: the file is missing, damaged, no checkpoint metadata, has foreign names, or leaves its directory.
    """
    content, foreign, file = _load(path)
    if seen is not None:
        seen.append(file)
    if foreign:
        raise InputError(
            f"{path}: names {named(foreign)}, which no metadata of torch.distributed.checkpoint needs; nothing of the "
            "file was executed, and loading it with torch would; do not use it unless you know where it is from"
        )
    if not isinstance(content, _Metadata):
        raise InputError(
            f"{path}: expected the Metadata of torch.distributed.checkpoint, found {type(content).__name__.strip('_')}"
        )
    try:
        entries = _fields(content, "state_dict_metadata")[0]
        places = _places(_fields(content, "storage_data")[0])
        _check_apart(entries.values(), file.size)
        tensors = {
            _text(name): _entry(name, entry, places)
            for name, entry in entries.items()
            if not isinstance(entry, _BytesStorageMetadata)
        }
        blobs = {_text(name): places.get((name, None), ()) for name in entries if name not in tensors}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: its metadata is damaged: {error}") from None
    files: dict[str, int] = {}
    for place in (each for found in places.values() for each in found):
        files[place.file] = max(files.get(place.file, 0), place.offset + place.length)
    raise_if(
        [
            f"{path}: refers to the file {file!r}, which is not a name in this directory; no such name is followed"
            for file in sorted(files)
            if not is_file_name(file)
        ]
    )
    return Metadata(tensors=tensors, blobs=blobs, files=files)


def _load(path: Path) -> tuple[Any, list[str], SourceFile]:
    """What the pickle holds, the names in it that are foreign, and the identity of the file."""
    with reading(path, "no such file"):
        data, file = read_whole(path)
    unpickler = _Unpickler(io.BytesIO(data))
    try:
        content = unpickler.load()
    except Exception as error:  # noqa: BLE001 - a damaged pickle can fail in any way, and none of them is a defect here
        if not unpickler.foreign:
            raise InputError(
                f"{path}: truncated, or not a pickle that torch.distributed.checkpoint wrote: {first_words(error)}"
            ) from None
        content = None
    return content, list(unpickler.foreign), file


class _Record(StandIn):
    """The stand-in for an object of torch: keeps its pickled state."""

    state: Any = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Metadata(_Record):
    pass


class _TensorStorageMetadata(_Record):
    pass


class _TensorProperties(_Record):
    pass


class _BytesStorageMetadata(_Record):
    pass


class _ChunkStorageMetadata(_Record):
    pass


class _MetadataIndex(_Record):
    pass


class _StorageInfo(_Record):
    pass


def _size(lengths: tuple[Any, ...]) -> tuple[Any, ...]:
    return lengths


def _dictionary() -> dict[Any, Any]:
    return {}


_CHECKPOINT = "torch.distributed.checkpoint"
_CLASSES: Mapping[tuple[str, str], Any] = {
    **{
        (f"{_CHECKPOINT}.metadata", each.__name__[1:]): each
        for each in (
            _Metadata,
            _TensorStorageMetadata,
            _TensorProperties,
            _BytesStorageMetadata,
            _ChunkStorageMetadata,
            _MetadataIndex,
        )
    },
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"): _StorageInfo,
    # Before torch 2.3.
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"): _TensorProperties,
    ("torch", "Size"): _size,
    ("collections", "OrderedDict"): _dictionary,
}
# Further names that torch and planners of training programs write; their values are ignored.
_UNUSED = re.compile(
    r"(torch\.distributed\.(checkpoint|_shard|tensor|_tensor)|megatron\.core|nvidia_resiliency_ext)\b[\w.]*:\w+"
    r"|torch\.serialization:_get_layout|torch:(device|layout|strided)"
    r"|pathlib(\._local)?:\w*Path|collections:(defaultdict|deque)|typing:\w+"
    r"|(builtins|__builtin__):(set|frozenset|list|dict|tuple|slice|range|complex|bytearray|str|int|float|bool|object)"
)
_DTYPE = re.compile(r"(b?float|complex|q?u?int|bits)\d\w*|bool")


class _Unpickler(InertUnpickler):
    """Builds records for torch's classes and inert objects for others, and collects the names of foreign ones."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.foreign: dict[str, None] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if module == "torch" and _DTYPE.fullmatch(name):
            return name
        if not _UNUSED.fullmatch(f"{module}:{name}"):
            self.foreign[f"{module}.{name}"] = None
        return type(name, (Inert,), {})


def _places(storage: Any) -> dict[tuple[str, Index | None], tuple[Place, ...]]:
    """The places by name and offsets of the chunk. The keys of `storage` are records, equal only to themselves."""
    places: dict[tuple[str, Index | None], list[Place]] = defaultdict(list)
    for index, info in storage.items():
        if not (isinstance(index, _MetadataIndex) and isinstance(info, _StorageInfo)):
            raise ValueError(f"storage_data maps {type(index).__name__} to {type(info).__name__}")
        name, offsets = _fields(index, "fqn", offset=None)
        file, offset, length, transforms = _fields(
            info, "relative_path", "offset", "length", transform_descriptors=None
        )
        key = _text(name), None if offsets is None else _index(offsets)
        offset, length = _index((offset, length))
        place = Place(
            file=_text(file), offset=offset, length=length, transforms=tuple(_text(each) for each in transforms or ())
        )
        places[key].append(place)
    return {key: tuple(found) for key, found in places.items()}


def _check_apart(entries: Iterable[object], nbytes: int) -> None:
    """Raise `ValueError` for entries that share chunks: those are stored under one name, and could be many times more.

    A chunk of its own is several bytes of the file.
    """
    chunks = sum(len(_fields(entry, "chunks")[0]) for entry in entries if isinstance(entry, _TensorStorageMetadata))
    if chunks > nbytes:
        raise ValueError(f"{chunks} chunks in a file of {nbytes} bytes: tensors share them")


def _entry(name: str, entry: object, places: Mapping[tuple[str, Index | None], tuple[Place, ...]]) -> Entry:
    if not isinstance(entry, _TensorStorageMetadata):
        raise ValueError(f"{_text(name)} is a {type(entry).__name__.strip('_')}")
    properties, size, boxes = _fields(entry, "properties", "size", "chunks")
    state = properties.state if isinstance(properties, _TensorProperties) else None
    dtype = state.get("dtype") if isinstance(state, dict) else state[0] if isinstance(state, tuple) and state else None
    shape = _index(size)
    chunks = []
    for box in boxes:
        offsets, sizes = (_index(each) for each in _fields(box, "offsets", "sizes"))
        if not len(offsets) == len(sizes) == len(shape):
            raise ValueError(f"{name} of shape {list(shape)} has a chunk {list(sizes)} at {list(offsets)}")
        found = places.get((name, offsets)) or (places.get((name, None), ()) if len(boxes) == 1 else ())
        chunks.append(Chunk(offsets=offsets, sizes=sizes, places=found))
    return Entry(dtype=_text(dtype), shape=shape, chunks=tuple(chunks))


def _fields(record: object, *names: str, **optional: Any) -> list[Any]:
    state = record.state if isinstance(record, _Record) else None
    if not isinstance(state, dict):
        raise ValueError(f"a {type(record).__name__.strip('_')} without content")
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"a {type(record).__name__.strip('_')} without {named(missing)}")
    return [state[name] for name in names] + [state.get(name, default) for name, default in optional.items()]


def _index(value: Any) -> Index:
    if not isinstance(value, (tuple, list)) or not all(
        type(each) is int and 0 <= each <= LARGEST_INDEX for each in value
    ):
        raise ValueError(f"expected whole numbers, found {type(value).__name__}")
    if len(value) > MOST_DIMS:
        raise ValueError(f"expected at most {MOST_DIMS} dims, found {len(value)}")
    return tuple(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    return value
