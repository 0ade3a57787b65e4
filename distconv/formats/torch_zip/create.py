"""The frames of `torch.save` archives of contiguous tensors: complete files with holes where the tensor data goes.

Owns the pickle and the archive members of a dictionary of tensors, a single tensor and a plain value, as `torch.save`
writes them. Never imports torch, and files do not depend on its version; torch 2.6 and later load them, also with
`weights_only=True` and `mmap=True`. `.data/serialization_id`, which torch computes from checksums of the data and only
logs, is left out.

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html; `_save` in `torch/serialization.py`,
`Tensor._reduce_ex_internal` in `torch/_tensor.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

from distconv.formats.frame import Frame
from distconv.formats.torch_zip.archive import STORAGE_DTYPES, row_major
from distconv.formats.torch_zip.frame import ALIGNMENT, zip_frame
from distconv.formats.torch_zip.write_pickle import Call, Global, Persistent, dumps
from distconv.tensors.dtypes import ITEM_SIZE

# Key of the dictionary, name, element type and shape of a tensor.
NamedForm = tuple[str, str, str, tuple[int, ...]]

_STORAGE_CLASS = MappingProxyType({dtype: Global("torch", name) for name, dtype in STORAGE_DTYPES.items()})
_UNTYPED_STORAGE = Global("torch.storage", "UntypedStorage")
_REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_TENSOR_OF_TYPE = Global("torch._utils", "_rebuild_tensor_v3")
_ORDERED_DICT = Global("collections", "OrderedDict")


def dictionaries_frame(
    keys: Iterable[str], tensors: Iterable[NamedForm], extra: Mapping[str, Any]
) -> tuple[Frame, dict[tuple[str, str], int]]:
    """The frame of an archive of dictionaries of tensors, and (key, name) of a tensor → its offset in bytes.

    `keys`: the keys of all dictionaries, empty ones included; `extra`: plain top-level values.
    """
    grouped: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {key: {} for key in keys}
    for key, name, dtype, shape in tensors:
        grouped[key][name] = dtype, shape
    # Storages are numbered, and stored, in the order of the pickle.
    places = [(key, name) for key, named in grouped.items() for name in named]
    forms = [form for named in grouped.values() for form in named.values()]
    content: dict[str, Any] = {key: {} for key in grouped}
    for number, ((key, name), form) in enumerate(zip(places, forms, strict=True)):
        content[key][name] = _tensor(number, *form)
    frame = _archive({**content, **extra}, forms)
    return frame, dict(zip(places, frame.holes, strict=True))


def tensor_frame(dtype: str, shape: tuple[int, ...]) -> Frame:
    """The frame of an archive of a single tensor, the only hole."""
    return _archive(_tensor(0, dtype, shape), [(dtype, shape)])


def value_frame(value: Any) -> Frame:
    """The frame of an archive of a plain value, which is the whole archive."""
    return _archive(value, [])


def empty_state_frame() -> Frame:
    """The frame of an archive of a list of a tensor without elements, the state of a module that has none."""
    return replace(_archive([_tensor(0, "uint8", (0,))], [("uint8", (0,))]), holes=())


def _archive(content: Any, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> Frame:
    """The frame for content that holds tensors of these element types and shapes."""
    members: list[tuple[str, bytes | int]] = [
        ("archive/data.pkl", dumps(content)),
        # Members have the order, and the alignment, by which readers can compute where they are.
        ("archive/.format_version", b"1"),
        ("archive/.storage_alignment", str(ALIGNMENT).encode()),
        ("archive/byteorder", b"little"),
        *((f"archive/data/{number}", prod(shape) * ITEM_SIZE[dtype]) for number, (dtype, shape) in enumerate(tensors)),
        ("archive/version", b"3\n"),
    ]
    return zip_frame(members)


def _tensor(number: int, dtype: str, shape: tuple[int, ...]) -> Call:
    """A tensor that is all of the storage of this number."""
    elements = prod(shape)
    typed = _STORAGE_CLASS.get(dtype)
    kind, length = (_UNTYPED_STORAGE, elements * ITEM_SIZE[dtype]) if typed is None else (typed, elements)
    storage = Persistent(("storage", kind, str(number), "cpu", length))
    arguments = (storage, 0, tuple(shape), row_major(shape), False, Call(_ORDERED_DICT))
    if typed is None:
        return Call(_REBUILD_TENSOR_OF_TYPE, (*arguments, Global("torch", dtype)))
    return Call(_REBUILD_TENSOR, arguments)
