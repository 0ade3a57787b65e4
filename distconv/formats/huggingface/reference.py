"""The Hugging Face directory that a conversion back follows: its configuration, its shards, its side files.

Owns what is looked at in it, and what is copied from it: all that makes a model usable and is no weight. Reads no
tensor data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from distconv.errors import InputError, raise_if
from distconv.formats.huggingface.directory import check_directory, find_index, read_directory, read_weight_map
from distconv.formats.iterations import TRACKER_NAME
from distconv.formats.jsonfile import read_object
from distconv.formats.model import MODEL_CONFIG, Reference
from distconv.models.adapters import CONFIG_NAME
from distconv.tensors.stored import SourceIndex

# Files of weights, in this format or another: the result has its own.
_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".distcp", ".npz"}
)
# The voices of Qwen2.5-Omni, without which transformers does not load it: no weights, whatever the name says.
_SIDE_FILES = frozenset({"spk_dict.pt"})
_INDEX_SUFFIX = ".index.json"


def read_reference(directory: Path, key: str) -> Reference:
    """The reference in a directory that configuration key `key` names; its weights may be missing.

    Raises:
        InputError: it is no Hugging Face directory, or damaged.
    """
    check_directory(directory, key)
    adapter = not (directory / MODEL_CONFIG).exists() and (directory / CONFIG_NAME).exists()
    name = CONFIG_NAME if adapter else MODEL_CONFIG
    config = read_object(directory / name, f"what the model in {key} is")
    index_file = find_index(directory, adapter=adapter)
    index: SourceIndex | None = None
    shards: Mapping[str, str] | None = None
    try:
        index = read_directory(directory, adapter=adapter)
        shards = {name: os.path.basename(tensor.file.path) for name, tensor in index.tensors.items()}
    except InputError:
        # Without its weights a model still says what the result looks like, if its index is there, or if nothing is.
        if index_file is not None:
            shards = read_weight_map(index_file)
        elif adapter or any(map(_is_weight, directory.iterdir())):
            raise
    content = read_object(index_file, "the shards of the result") if index_file is not None else None
    return Reference(
        directory=str(directory),
        config=config,
        is_adapter=adapter,
        index=index,
        shards=shards and {name: _as_safetensors(shard) for name, shard in shards.items()},
        index_content=content,
        side_files=tuple(side_files(directory)),
    )


def _as_safetensors(shard: str) -> str:
    """The name of a file of weights as transformers names it in this format."""
    if shard.endswith(".safetensors"):
        return shard
    numbers = re.fullmatch(r".*(-\d+-of-\d+)\.\w+", shard)
    stem = "adapter_model" if shard.startswith("adapter_model") else "model"
    return f"{stem}{numbers[1] if numbers else ''}.safetensors"


def side_files(directory: Path) -> Iterator[str]:
    """The files of a directory that are copied, by path below it: no weights, nothing hidden, no other checkpoint."""
    return (path.relative_to(directory).as_posix() for path in _beside_weights(directory) if path.is_file())


def check_side_files(directory: Path) -> None:
    """Raise `InputError` for every file that should be copied and cannot be, as what it links to was not downloaded."""
    raise_if(
        [
            f"{path}: is a link to nothing, and the result needs a copy of it; download it again, or remove the link"
            for path in _beside_weights(directory)
            if path.is_symlink() and not path.exists()
        ]
    )


def _beside_weights(directory: Path) -> Iterator[Path]:
    for path, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if _belongs_to_model(Path(path, name)))
        for name in sorted(names):
            found = Path(path, name)
            if not name.startswith(".") and not name.endswith(_INDEX_SUFFIX) and not _is_weight(found):
                yield found


def _belongs_to_model(directory: Path) -> bool:
    """Whether a directory in that of a model is a part of it: not what training has put there."""
    hidden = directory.name.startswith(".") or directory.name == "__pycache__"
    return not hidden and not (directory / TRACKER_NAME).exists()


def _is_weight(path: Path) -> bool:
    return path.suffix.lower() in _WEIGHTS and path.name not in _SIDE_FILES
