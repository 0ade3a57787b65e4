"""Reading `.metadata` of a torch.distributed.checkpoint directory: tensors, their chunks, and the chunks' positions.

The file is a pickle, and torch executes it. Here it is read as data: the few names that torch writes become records of
this module, every other name is refused, and nothing is ever imported or called. Needs no torch, opens no other file.
Format: `torch/distributed/checkpoint/metadata.py`, and `StorageInfoRecord` in `filesystem.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if
from distconv.formats.dcp.metadata_pickle import Record, kind_of, load
from distconv.formats.torch_zip.archive import LARGEST_INDEX, MOST_DIMS
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

    `files`: the bytes that each file has at least, by its name. `saved_in`: the path of the directory that it was saved
    in, as far as torch recorded it.
    """

    tensors: Mapping[str, Entry]
    blobs: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    saved_in: str = ""


def read_metadata(path: Path, seen: list[SourceFile] | None = None) -> Metadata:
    """Read a `.metadata` file; the identity of one on which a job relies is added to `seen`.

    Raises:
        InputError: the file is missing, damaged, no checkpoint metadata, has foreign names, or leaves its directory.
    """
    content, foreign, file = load(path)
    if seen is not None:
        seen.append(file)
    if foreign:
        raise InputError(
            f"{path}: names {named(foreign)}, which no metadata of torch.distributed.checkpoint needs; nothing of the "
            "file was executed, and loading it with torch would; do not use it unless you know where it is from"
        )
    if kind_of(content) != "Metadata":
        raise InputError(f"{path}: expected the Metadata of torch.distributed.checkpoint, found {kind_of(content)}")
    try:
        entries = _fields(content, "state_dict_metadata")[0]
        places = _places(_fields(content, "storage_data")[0])
        _check_apart(entries.values(), file.size)
        tensors = {
            _text(name): _entry(name, entry, places)
            for name, entry in entries.items()
            if kind_of(entry) != "BytesStorageMetadata"
        }
        saved_in = _saved_in(content)
        blobs = {_text(name): places.get((name, None), ()) for name in entries if name not in tensors}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: its metadata is damaged: {error}; copy or save the checkpoint again") from None
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
    return Metadata(tensors=tensors, blobs=blobs, files=files, saved_in=saved_in)


def _places(storage: Any) -> dict[tuple[str, Index | None], tuple[Place, ...]]:
    """The places by name and offsets of the chunk. The keys of `storage` are records, equal only to themselves."""
    places: dict[tuple[str, Index | None], list[Place]] = defaultdict(list)
    for index, info in storage.items():
        if (kind_of(index), kind_of(info)) != ("MetadataIndex", "StorageInfo"):
            raise ValueError(f"storage_data maps {kind_of(index)} to {kind_of(info)}")
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
    chunks = sum(len(_fields(entry, "chunks")[0]) for entry in entries if kind_of(entry) == "TensorStorageMetadata")
    if chunks > nbytes:
        raise ValueError(f"{chunks} chunks in a file of {nbytes} bytes: tensors share them")


def _entry(name: str, entry: object, places: Mapping[tuple[str, Index | None], tuple[Place, ...]]) -> Entry:
    if kind_of(entry) != "TensorStorageMetadata":
        raise ValueError(f"{_text(name)} is a {kind_of(entry)}")
    properties, size, boxes = _fields(entry, "properties", "size", "chunks")
    state = properties.state if isinstance(properties, Record) else None
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


def _saved_in(metadata: object) -> str:
    (meta,) = _fields(metadata, storage_meta=None)
    (path,) = _fields(meta, checkpoint_id=None) if kind_of(meta) == "StorageMeta" else (None,)
    return path if isinstance(path, str) else ""


def _fields(record: object, *names: str, **optional: Any) -> list[Any]:
    state = record.state if isinstance(record, Record) else None
    if not isinstance(state, dict):
        raise ValueError(f"a {kind_of(record)} without content")
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"a {kind_of(record)} without {named(missing)}")
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
