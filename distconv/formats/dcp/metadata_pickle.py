"""The pickle of `.metadata`, as data: records in place of torch's objects.

torch executes the pickle. Here the few names that torch writes become records of this module, other names are collected
for whoever refuses them, and nothing is ever imported or called. What the records say is for `metadata`.
Format: `torch/distributed/checkpoint/metadata.py`, and `_StorageInfo` in `filesystem.py`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from distconv.errors import InputError, reading
from distconv.formats.torch_zip.inert_pickle import Inert, InertUnpickler, StandIn, first_words
from distconv.runtime.identity import read_whole
from distconv.tensors.stored import SourceFile


def load(path: Path) -> tuple[Any, list[str], SourceFile]:
    """What a `.metadata` file holds, the names in it that are foreign, and the identity of the file.

    Raises:
        InputError: the file is missing, or no pickle.
    """
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


class Record(StandIn):
    """The stand-in for an object of torch: the name of its class, and its pickled state."""

    kind: ClassVar[str] = ""
    state: Any = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


def kind_of(value: object) -> str:
    """The name of the class of an object of torch, or of any other value."""
    return value.kind if isinstance(value, Record) else type(value).__name__


def _size(lengths: tuple[Any, ...]) -> tuple[Any, ...]:
    return lengths


def _dictionary() -> dict[Any, Any]:
    return {}


_CHECKPOINT = "torch.distributed.checkpoint"
_RECORDS = (
    (f"{_CHECKPOINT}.metadata", "Metadata"),
    (f"{_CHECKPOINT}.metadata", "TensorStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "TensorProperties"),
    # Before torch 2.3.
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    (f"{_CHECKPOINT}.metadata", "BytesStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "ChunkStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "MetadataIndex"),
    (f"{_CHECKPOINT}.metadata", "StorageMeta"),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
)
_CLASSES: Mapping[tuple[str, str], Any] = {
    **{(module, name): type(name, (Record,), {"kind": name.strip("_")}) for module, name in _RECORDS},
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
