"""Reading a reference, the Hugging Face directory that a result follows: configuration, shard files, side files.

Owns the choice of side files: those that make a model usable and hold no weights. Reads no tensor data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from distconv.errors import InputError, named, raise_if, reading
from distconv.formats.foreign import foreign_problem
from distconv.formats.huggingface.directory import (
    NO_WEIGHTS,
    check_directory,
    find_index,
    read_directory,
    read_weight_map,
    unread_weights,
)
from distconv.formats.huggingface.quantisation import lifted, lifted_names
from distconv.formats.huggingface.schemes import Scheme, scheme_in
from distconv.formats.iterations import TRACKER_NAME
from distconv.formats.jsonfile import read_object
from distconv.formats.lfs import LARGEST_POINTER, POINTER, POINTER_BYTES, is_pointer
from distconv.formats.model import MODEL_CONFIG, Reference
from distconv.formats.provenance import PROVENANCE_NAME
from distconv.models.adapters import CONFIG_NAME
from distconv.runtime.identity import look_at
from distconv.runtime.regular_files import read_file
from distconv.tensors.stored import SourceFile, SourceIndex

# Files of weights, in any format: the result has its own.
_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".distcp", ".npz"}
)
_INDEX_SUFFIX = ".index.json"


def read_reference(directory: Path, key: str) -> Reference:
    """Read the reference in the directory of option `key`; its weights may be missing.

    Quantised weights of a known scheme are one tensor each, as in the model that they were made of.

    Raises:
        InputError: no Hugging Face directory, or a damaged one.
    """
    check_directory(directory, key)
    adapter = not (directory / MODEL_CONFIG).exists() and (directory / CONFIG_NAME).exists()
    name = CONFIG_NAME if adapter else MODEL_CONFIG
    if not (directory / name).exists() and (problem := foreign_problem(directory, key)):
        raise InputError(problem)
    seen: list[SourceFile] = []
    config = read_object(directory / name, f"what the model in {key} is", seen)
    index_file = find_index(directory, adapter=adapter)
    index: SourceIndex | None = None
    shard_files: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    try:
        index = read_directory(directory, adapter=adapter, seen=seen)
        shard_files = {name: os.path.basename(tensor.file.path) for name, tensor in index.tensors.items()}
        if unread := unread_weights(directory, index, adapter=adapter):
            notes = (f"{key}={directory}: not read, beside the weights: {named(unread)}",)
    except InputError as error:
        if error.unreadable:
            raise
        # Without weights, the index file gives the shard files, and without both the result has its own.
        if index_file is not None:
            shard_files = read_weight_map(index_file, seen)
            if any((directory / shard).exists() for shard in shard_files.values()):
                notes = (f"{key}={directory}: of its weights nothing but the index is used: {error.problems[0]}",)
        elif adapter or any(map(_is_weight, directory.iterdir())):
            raise
    named_so = shard_files
    if (scheme := _scheme(config, directory)) is not None:
        index = index and lifted(index, scheme)
        shard_files = shard_files and lifted_names(shard_files, scheme)
    content = read_object(index_file, "the shards of the result", seen) if index_file is not None else None
    with reading(directory):
        beside = {name: look_at(directory / name) for name in side_files(directory)}
    return Reference(
        directory=str(directory),
        config=config,
        is_adapter=adapter,
        index=index,
        shard_files=shard_files and {name: _as_safetensors(file) for name, file in shard_files.items()},
        index_content=content,
        index_file=None if content is None else seen[-1],
        described_by=tuple(seen),
        side_files=beside,
        notes=notes,
        quantised=shard_files != named_so,
    )


def _scheme(config: Mapping[str, object], directory: Path) -> Scheme | None:
    """The scheme that a reference is quantised in, if it is known."""
    try:
        return scheme_in(config, f"{directory}/{MODEL_CONFIG}")
    except InputError:
        return None


def _as_safetensors(file: str) -> str:
    """The safetensors name, as in transformers, for the name of a weight file in any format."""
    if file.endswith(".safetensors"):
        return file
    numbers = re.fullmatch(r".*(-\d+-of-\d+)\.\w+", file)
    stem = "adapter_model" if file.startswith("adapter_model") else "model"
    return f"{stem}{numbers[1] if numbers else ''}.safetensors"


def side_files(directory: Path) -> Iterator[str]:
    """The paths of side files below a directory: no weights, no hidden files, no other checkpoint."""
    return (path.relative_to(directory).as_posix() for path in _beside_weights(directory) if path.is_file())


def check_side_files(directory: Path) -> None:
    """Raise `InputError` for every side file that is not there: a link to nothing, or a pointer of Git LFS."""
    with reading(directory):
        found = [(path, _loss(path)) for path in _beside_weights(directory)]
    raise_if([f"{path}: {loss}" for path, loss in found if loss is not None])


def _loss(path: Path) -> str | None:
    """Why there is nothing to be copied under the path of a side file, in words; `None` if there is."""
    if path.is_symlink() and not path.exists():
        return "is a link to nothing, and the result needs a copy of it; download it again, or remove the link"
    with reading(path):
        is_small = path.is_file() and POINTER_BYTES <= path.stat().st_size < LARGEST_POINTER
        return POINTER if is_small and is_pointer(read_file(path)) else None


def _beside_weights(directory: Path) -> Iterator[Path]:
    for path, directories, names in os.walk(directory, onerror=_raised):
        directories[:] = sorted(name for name in directories if _belongs_to_model(Path(path, name)))
        for name in sorted(names):
            found = Path(path, name)
            # The record of a result is of that one alone.
            is_own = name.startswith(".") or name == PROVENANCE_NAME
            if not is_own and not name.endswith(_INDEX_SUFFIX) and not _is_weight(found):
                yield found


def _raised(error: OSError) -> None:
    """Do not pass over what cannot be listed: it may be part of the model."""
    raise error


def _belongs_to_model(directory: Path) -> bool:
    """Whether a subdirectory is a part of the model, not hidden and not a checkpoint of training."""
    hidden = directory.name.startswith(".") or directory.name == "__pycache__"
    return not hidden and not (directory / TRACKER_NAME).exists()


def _is_weight(path: Path) -> bool:
    return path.suffix.lower() in _WEIGHTS and path.name not in NO_WEIGHTS
