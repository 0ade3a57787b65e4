"""Checkpoints of torch.distributed.checkpoint written without torch, so that each part of them can be wrong.

The pickles name classes of torch that this module never has; `tests/end_to_end/test_dcp_files.py` shows that torch
reads the like.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

STORAGES = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}
META = "torch.distributed.checkpoint.metadata"


@dataclass(frozen=True)
class Name:
    """Pickles as a reference to what another module has under this name."""

    module: str
    name: str

    def __call__(self) -> None:
        raise AssertionError("only ever pickled")

    def __reduce_ex__(self, protocol: object) -> str:
        return self.name


@dataclass(eq=False)
class Call:
    """Pickles as what a call gives, or, without arguments, as a bare object, with the state that is set on it then."""

    function: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class Storage:
    dtype: str
    elements: int


class _Pickler(pickle._Pickler):
    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = (obj.module, obj.name) if isinstance(obj, Name) else (obj.__module__, obj.__qualname__)
        self.write(f"c{module}\n{name}\n".encode())
        self.memoize(obj)

    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, Storage):
            return ("storage", Name("torch", STORAGES[obj.dtype]), "0", "cpu", obj.elements)
        return None

    def save_call(self, call: Call) -> None:
        self.save(call.function)
        self.save(call.arguments)
        self.write(pickle.REDUCE if call.arguments else pickle.NEWOBJ)
        self.memoize(call)
        if call.state is not None:
            self.save(call.state)
            self.write(pickle.BUILD)

    dispatch: ClassVar[dict[Any, Any]] = {**pickle._Pickler.dispatch, type: save_global, Call: save_call}


def pickled(content: object, protocol: int = 4) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(content)
    return stream.getvalue()


def size(values: Sequence[int]) -> Call:
    return Call(Name("torch", "Size"), (tuple(values),))


def archive(content: object, data: bytes = b"") -> bytes:
    """A zip as `torch.save` lays it out, without what is not needed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("archive/data.pkl", pickled(content, 2))
        opened.writestr("archive/byteorder", "little")
        opened.writestr("archive/data/0", data)
        opened.writestr("archive/version", "3\n")
    return stream.getvalue()


def stored(array: np.ndarray, dtype: str, order: Sequence[int] | None = None) -> bytes:
    """A tensor as `torch.save` writes it, its elements in memory with the dims in another order."""
    order = range(array.ndim) if order is None else order
    memory = array.transpose(order).copy("C")
    strides = [0] * array.ndim
    for dim, stride in zip(order, memory.strides, strict=True):
        strides[dim] = stride // memory.itemsize
    arguments = (Storage(dtype, array.size), 0, array.shape, tuple(strides), False, OrderedDict())
    return archive(Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments), memory.tobytes())


@dataclass
class Box:
    """A chunk, and where the metadata says that it is."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int
    more: dict[str, Any] = field(default_factory=dict)

    def info(self) -> Call:
        state = {"relative_path": self.file, "offset": self.offset, "length": self.length, **self.more}
        return Call(Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"), (), state)


@dataclass
class Draft:
    """A checkpoint that is not written yet: change it, then `save` it."""

    shapes: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    planner_data: Any = None
    unplaced: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)

    def put(self, name: str, array: np.ndarray, dtype: str, cuts: Sequence[tuple[slice, ...]], **given: Any) -> None:
        """Add a tensor, its pieces in one file after the other."""
        self.shapes[name] = dtype, array.shape
        for number, cut in enumerate(cuts):
            piece = np.asarray(array[cut])
            offsets = tuple(each.indices(length)[0] for each, length in zip(cut, array.shape, strict=True))
            self.add(name, offsets, piece.shape, stored(piece, dtype, **given), f"__{number}_0.distcp")

    def add(self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...], content: bytes, file: str) -> None:
        """Add what is stored of a chunk."""
        before = self.files.get(file, b"")
        self.files[file] = before + content
        self.boxes.setdefault(name, []).append(Box(offsets, sizes, file, len(before), len(content)))

    def metadata(self) -> Call:
        entries: dict[str, Call] = {name: Call(Name(META, "BytesStorageMetadata")) for name in self.others}
        storage: dict[Call, Call] = {}
        for name, (dtype, shape) in self.shapes.items():
            chunks = []
            for box in self.boxes.get(name, []):
                state = {"offsets": size(box.offsets), "sizes": size(box.sizes)}
                chunks.append(Call(Name(META, "ChunkStorageMetadata"), (), state))
                if (name, box.offsets) not in self.unplaced:
                    storage[index(name, box.offsets)] = box.info()
            layout = Call(Name("torch.serialization", "_get_layout"), ("torch.strided",))
            memory = Call(Name(META, "_MEM_FORMAT_ENCODING"), (0,))
            properties = Call(Name(META, "TensorProperties"), (), (Name("torch", dtype), layout, False, memory, False))
            state = {"properties": properties, "size": size(shape), "chunks": chunks}
            entries[name] = Call(Name(META, "TensorStorageMetadata"), (), state)
        state = {"state_dict_metadata": entries, "planner_data": self.planner_data, "storage_data": storage}
        return Call(Name(META, "Metadata"), (), state)

    def save(self, directory: Path) -> Path:
        """Write the files; the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)
        (directory / ".metadata").write_bytes(pickled(self.metadata()))
        return directory


def index(name: str, offsets: tuple[int, ...] | None) -> Call:
    state = {"fqn": name, "index": 0} | ({} if offsets is None else {"offset": size(offsets)})
    return Call(Name(META, "MetadataIndex"), (), state)


def rows(count: int, length: int, dims: int = 2) -> list[tuple[slice, ...]]:
    """Equal cuts of dim 0."""
    step = length // count
    return [(slice(n * step, (n + 1) * step), *[slice(None)] * (dims - 1)) for n in range(count)]
