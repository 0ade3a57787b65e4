"""The tensors of a state dict in a `torch.save` file (`.bin`, `.pth`, `.pt`), as records of a source index.

Owns the checks that such a file is usable as a source. Reads no tensor data, and executes nothing of its pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if
from distconv.formats.torch_zip.archive import ArchivedTensor, read_source_archive
from distconv.tensors.stored import StoredTensor

# Values that may stand beside tensors, such as a version, or an extra state that Megatron left empty.
_PLAIN = (type(None), bool, int, float, str)
# Keys under which training programs keep a state dict, as the only top-level key of a file.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def read_state_dict(path: Path) -> list[StoredTensor]:
    """Read the tensors of a file.

    Raises:
        InputError: the file is damaged, holds no tensors, or tensors that are not contiguous.
    """
    content, file = read_source_archive(path)
    entries = _state_dict(content)
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, ArchivedTensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors; expected a state dict, or one under {', '.join(_WRAPPERS)}")
    strange = [
        name
        for name, entry in entries.items()
        if not isinstance(name, str) or not isinstance(entry, (ArchivedTensor, *_PLAIN))
    ]
    if strange:
        raise InputError(f"{path}: entries that are no tensors: {named(strange)}; save a state dict of tensors alone")
    scattered = [name for name, tensor in tensors.items() if not tensor.is_contiguous]
    raise_if(
        [f"{path}: tensors that are not contiguous: {named(scattered)}; save their .contiguous()"] if scattered else []
    )
    return [StoredTensor(name, tensor.dtype, tensor.shape, file, tensor.offset) for name, tensor in tensors.items()]


def _state_dict(content: Mapping[str, Any]) -> Mapping[str, Any]:
    if not any(isinstance(value, ArchivedTensor) for value in content.values()):
        inner: list[Mapping[str, Any]] = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(inner) == 1:
            return inner[0]
    return content
