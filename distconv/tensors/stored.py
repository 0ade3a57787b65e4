"""The source index: which tensors a checkpoint holds, and where their bytes are.

Owns the records that all later stages plan with. It knows nothing of file formats and reads nothing:
`safetensors_index` and its like produce them, rank 0 shares them with the other processes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.virtual import VirtualTensor

# A way out of the directory, and what no file system has in a name: half of a surrogate pair is no character.
_NO_FILE_NAME = re.compile(r"\.{0,2}|.*[/\\\0\ud800-\udfff].*", re.DOTALL)


def is_file_name(text: str) -> bool:
    """Whether a text that stands in a checkpoint is the name of a file in its directory, and leads nowhere else."""
    return not _NO_FILE_NAME.fullmatch(text)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that holds tensor data: its absolute path, and its size in bytes when the index was made."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A contiguous tensor in a file: `offset` is the position in bytes of its first element in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SourceFile
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * ITEM_SIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class AssembledTensor:
    """A tensor that lies in pieces: operand `i` of `tensor` is `parts[i]`.

    Tensors that are cut alike share one `tensor`, the same object.
    """

    name: str
    tensor: VirtualTensor
    parts: tuple[StoredTensor, ...]


@dataclass(frozen=True, kw_only=True)
class SourceIndex:
    """The tensors of one checkpoint directory by name."""

    directory: str
    tensors: Mapping[str, StoredTensor]

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        files = {tensor.file: None for tensor in self.tensors.values()}
        numbers = {file: number for number, file in enumerate(files)}
        return {
            "directory": self.directory,
            "files": [[file.path, file.size] for file in files],
            "tensors": [
                [tensor.name, tensor.dtype, tensor.shape, numbers[tensor.file], tensor.offset]
                for tensor in self.tensors.values()
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SourceIndex:
        """The index that `to_json` described."""
        files = [SourceFile(path, size) for path, size in data["files"]]
        tensors = {
            name: StoredTensor(name, dtype, tuple(shape), files[file], offset)
            for name, dtype, shape, file, offset in data["tensors"]
        }
        return SourceIndex(directory=data["directory"], tensors=tensors)
