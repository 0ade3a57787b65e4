"""Reading the structure of a `torch.save` file: which tensors it holds, and at which offsets.

The zip directory and the pickle are read as data: classes and functions that the pickle names are never imported or
called, they become inert stand-ins. Needs no torch and reads no tensor data.
Format: https://docs.pytorch.org/docs/stable/notes/serialization.html, and `torch/serialization.py`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from distconv.errors import InputError, system_problem, tells_nothing
from distconv.formats.lfs import POINTER, POINTER_BYTES, is_pointer
from distconv.formats.torch_zip.inert_pickle import Inert, InertUnpickler, Namespace, first_words
from distconv.formats.torch_zip.local_headers import LocalHeaders
from distconv.runtime.identity import look_at, look_into
from distconv.runtime.regular_files import open_file
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import SourceFile

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_AGAIN = "copy the file again, or save it again with torch"
# The limits of torch itself.
MOST_DIMS = 64
LARGEST_INDEX = 2**63 - 1
_TORCHS_MARK = "/.data/serialization_id"


@dataclass(frozen=True, slots=True)
class ArchivedTensor:
    """A tensor of the file: element type, shape, strides in elements, file offset in bytes of its first element."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @staticmethod
    def contiguous(dtype: str, shape: tuple[int, ...], offset: int) -> ArchivedTensor:
        """A tensor whose elements lie in row-major order without gaps."""
        return ArchivedTensor(dtype, shape, row_major(shape), offset)

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in row-major order without gaps; those of an empty tensor do."""
        if 0 in self.shape:
            return True
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length > 1 and stride != expected:
                return False
            expected *= length
        return True


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides in elements of a contiguous tensor, as torch gives them: empty dims count as dims of one."""
    return tuple(prod(max(length, 1) for length in shape[dim + 1 :]) for dim in range(len(shape)))


class _DamagedError(Exception):
    """What is wrong inside a file; the name of the file comes in front of it."""


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str | None
    offset: int
    nbytes: int


def read_archive(path: Path) -> Mapping[str, Any]:
    """The top-level dictionary of a file: tensors as `ArchivedTensor`, plain values as they are, all else `Inert`.

    Raises:
        InputError: the file is missing, not in torch's zip format, or damaged.
    """
    return read_source_archive(path)[0]


def read_source_archive(path: Path, names: set[str] | None = None) -> tuple[Mapping[str, Any], SourceFile]:
    """The same of a file of a source, and its identity, whose header is the pickle and the directory of the zip.

    `names` gets the full names of all classes and functions that the pickle has.

    Raises:
        InputError: as `read_archive`.
    """
    with refusals(str(path)), open_file(path) as stream:
        file = look_at(path, stream.fileno())
        if is_pointer(stream.read(POINTER_BYTES)):
            raise _DamagedError(POINTER)
        with zipfile.ZipFile(stream) as archive:
            headers = LocalHeaders(stream)
            headers.read_ahead(archive.infolist())
            content = _content(archive, headers, 0, file.size, names)
            pickle = _members(archive)["data.pkl"]
            start = headers.data_offset(pickle)
            ranges = [(start, start + pickle.file_size), (archive.start_dir, file.size)]
        file = look_into(file, stream.fileno(), ranges)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a dictionary at the top, found {type(content).__name__}")
    return content, file


def archive_content(stream: IO[bytes], offset: int, length: int, names: set[str] | None = None) -> Any:
    """The unpickled content of an archive at the bytes `offset` to `offset + length` of its file.

    `names` gets the full names of all classes and functions that the pickle has.
    Damage raises various errors; run it inside `refusals`, which makes them `InputError`.
    """
    with zipfile.ZipFile(stream) as archive:
        return _content(archive, LocalHeaders(stream), offset, length, names)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by their names below the common first directory."""
    return {info.filename.partition("/")[2]: info for info in archive.infolist()}


def _content(
    archive: zipfile.ZipFile, headers: LocalHeaders, offset: int, length: int, names: set[str] | None = None
) -> Any:
    members = _members(archive)
    if "data.pkl" not in members:
        raise _DamagedError("not a file that torch.save wrote: it holds no data.pkl")
    for name in members.keys() & {"data.pkl", "byteorder"}:
        _check_stored(members[name], name)
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise _DamagedError("written on a big-endian machine, which is not supported")
    unpickler = _Unpickler(archive.read(members["data.pkl"]), _Storages(headers, members, offset, length), names)
    return unpickler.load()


def is_written_by_torch(path: Path) -> bool:
    """Whether torch itself wrote an archive, or the last one of a file: it leaves a mark that no other writer does."""
    with refusals(str(path)), open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        return any(name.endswith(_TORCHS_MARK) for name in archive.namelist())


@contextmanager
def refusals(where: str) -> Iterator[None]:
    """Turn the errors that a damaged archive raises inside the context into `InputError` with `where`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{where}: no such file; was it copied completely?") from None
    except OSError as error:
        raise InputError(system_problem(f"{where}: cannot be read", error), unreadable=tells_nothing(error)) from None
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{where}: truncated, or not in the zip format of torch >= 1.6 ({error}); an older file can be saved again "
            "with torch.save(torch.load(file), file)"
        ) from None
    except _DamagedError as error:
        raise InputError(f"{where}: {error}; {_AGAIN}") from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can fail in any way, and none of them is a defect here
        raise InputError(f"{where}: its pickle is damaged: {first_words(error)}; {_AGAIN}") from None


def _check_stored(info: zipfile.ZipInfo, what: str) -> None:
    """Refuse a compressed member, whose few bytes may expand beyond memory."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise _DamagedError(f"its {what} is compressed, which torch never does")


class _Storages:
    """The storages of an archive by key, located and checked on first reference."""

    def __init__(
        self, headers: LocalHeaders, members: Mapping[str, zipfile.ZipInfo], archive_offset: int, archive_length: int
    ) -> None:
        self._headers, self._members = headers, members
        self._offset, self._length = archive_offset, archive_length

    def locate(self, key: str, dtype: str | None) -> _Storage:
        info = self._members.get(f"data/{key}")
        if info is None:
            raise _DamagedError(f"its storage {key} is missing")
        _check_stored(info, f"storage {key}")
        offset = self._headers.data_offset(info)
        if offset + info.file_size > self._length:
            raise _DamagedError(f"its storage {key} leaves the file")
        return _Storage(dtype, self._offset + offset, info.file_size)


class _Unpickler(InertUnpickler):
    """Builds records of tensors and storages; other objects become inert."""

    def __init__(self, text: bytes, storages: _Storages, names: set[str] | None) -> None:
        super().__init__(io.BytesIO(text))
        self._storages, self._names = storages, names
        self._inert: dict[tuple[str, str], type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if self._names is not None:
            self._names.add(f"{module}.{name}")
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and name in ITEM_SIZE:
            return name
        return self._inert.setdefault((module, name), type(name, (Inert,), {}))

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _ = pid
        if not isinstance(kind, str):
            raise TypeError("the kind of a reference is text")
        if kind != "storage" or not isinstance(key, str):
            raise _DamagedError(f"unknown reference {kind!r} in the pickle")
        # The storage of a type that is not known here, or that its tensor names, is bytes.
        return self._storages.locate(key, dtype if isinstance(dtype, str) else None)


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> ArchivedTensor | Inert:
    return Inert() if storage.dtype is None else _located(storage, storage.dtype, offset, tuple(shape), tuple(strides))


def _tensor_of_type(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: object,  # noqa: ARG001 - torch's signature
    hooks: object,  # noqa: ARG001
    dtype: object,
    *_: object,
) -> ArchivedTensor | Inert:
    return _located(storage, dtype, offset, tuple(shape), tuple(strides)) if isinstance(dtype, str) else Inert()


def _located(
    storage: _Storage, dtype: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> ArchivedTensor:
    item_size = ITEM_SIZE[dtype]
    if not all(type(each) is int for each in (offset, *shape, *strides)):
        raise TypeError("shape, strides and offset of a tensor are whole numbers")
    numbers = (offset, *shape, *strides)
    if not len(shape) == len(strides) <= MOST_DIMS or not 0 <= min(numbers) <= max(numbers) <= LARGEST_INDEX:
        raise _DamagedError(f"a tensor has shape {list(shape)}, strides {list(strides)} and offset {offset}")
    extent = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) if prod(shape) else 0
    if (offset + extent) * item_size > storage.nbytes:
        raise _DamagedError(f"a tensor of shape {list(shape)} leaves its storage of {storage.nbytes} bytes")
    return ArchivedTensor(dtype, shape, strides, storage.offset + offset * item_size)


def _parameter(data: ArchivedTensor | Inert, *_: object) -> ArchivedTensor | Inert:
    return data


def _dictionary() -> dict[Any, Any]:
    """The stand-in for a dictionary class, whose entries follow in the pickle."""
    return {}


def _attribute(*_: object) -> type[Inert]:
    """The stand-in for a nested class, which protocol 2 pickles as an attribute of another class."""
    return type("Attribute", (Inert,), {})


_FUNCTIONS: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    # How tensors on an NPU are saved: copied to the CPU, with their on-device format as one argument more.
    ("torch_npu.utils.storage", "_rebuild_npu_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("collections", "OrderedDict"): _dictionary,
    ("argparse", "Namespace"): Namespace,
    ("types", "SimpleNamespace"): Namespace,
    ("__builtin__", "getattr"): _attribute,
    ("builtins", "getattr"): _attribute,
}
