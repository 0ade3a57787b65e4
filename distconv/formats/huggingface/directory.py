"""The source index of a Hugging Face directory: the tensors of its shard files or its single file.

Owns the choice of files, and the agreement between an index file and its shard files; `safetensors` and `state_dict`
read a single file. Follows no name out of the directory.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distconv.errors import InputError, counted, named, raise_if, system_problem
from distconv.formats.foreign import file_words
from distconv.formats.hub import hub_words
from distconv.formats.huggingface.safetensors import read_header
from distconv.formats.huggingface.state_dict import read_state_dict
from distconv.formats.jsonfile import read_object
from distconv.runtime.hand_out import AT_ONCE, on_threads
from distconv.runtime.progress import finished
from distconv.tensors.stored import SourceFile, SourceIndex, StoredTensor, is_file_name

_OF_ONE = "are index and shards of one download?"


@dataclass(frozen=True, kw_only=True)
class _Format:
    """A kind of weight files: its index file, its single file, other names of it, and the reader of a file."""

    index: str
    single: str
    others: tuple[str, ...]
    read: Callable[[Path], list[StoredTensor]]


# As paths name variables that could not be replaced.
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)", re.ASCII)
_MODEL = (
    _Format(
        index="model.safetensors.index.json", single="model.safetensors", others=("*.safetensors",), read=read_header
    ),
    _Format(
        index="pytorch_model.bin.index.json",
        single="pytorch_model.bin",
        others=("*.bin", "*.pth", "*.pt"),
        read=read_state_dict,
    ),
)
_ADAPTER = (
    _Format(
        index="adapter_model.safetensors.index.json", single="adapter_model.safetensors", others=(), read=read_header
    ),
    _Format(index="adapter_model.bin.index.json", single="adapter_model.bin", others=(), read=read_state_dict),
)

# Names of weights and of their indexes; and of a side file that has such a name: the voices of Qwen2.5-Omni, without
# which transformers does not load the model.
_LIKE_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".safetensors.index.json", ".bin.index.json")
NO_WEIGHTS = frozenset({"spk_dict.pt"})


def read_directory(directory: Path, *, adapter: bool = False, seen: list[SourceFile] | None = None) -> SourceIndex:
    """Read the tensors of the shard files that an index file names, or of the single file; `adapter`: of an adapter.

    Safetensors are preferred to state dicts. Other files of the directory are not read: `unread_weights`. The identity
    of the index file is added to `seen`.

    Raises:
        InputError: as `find_index`; no or several candidates; a shard file that is missing, truncated or damaged; an
            index file that disagrees with its shard files. All problems of the files are reported together.
    """
    formats = _ADAPTER if adapter else _MODEL
    index = find_index(directory, adapter=adapter)
    for each in formats:
        if index is not None and index.name == each.index:
            return _from_index(directory, index, each.read, seen)
        found = sorted({path.name for name in (each.single, *each.others) for path in directory.glob(name)})
        if each.single in found or len(found) == 1:
            single = each.single if each.single in found else found[0]
            return SourceIndex(directory=str(directory), tensors=_read_files(directory, [single], each.read))
        if found:
            raise InputError(
                f"{directory}: holds {len(found)} files that may be the model ({named(found, 3)}) but no {each.index} "
                "that says which of them are; restore it from where the model was downloaded, or give a directory "
                "that holds the model alone"
            )
    expected = ", ".join(each.single for each in formats)
    raise InputError(f"{directory}: holds no checkpoint; expected one of {expected}, or shards and their index")


def find_index(directory: Path, *, adapter: bool = False) -> Path | None:
    """The index file of a directory, `None` without one.

    Raises:
        InputError: beside it lies a single file that it does not name: some programs read the one, some the other.
    """
    for each in _ADAPTER if adapter else _MODEL:
        path = directory / each.index
        if not path.exists():
            # A single file comes before the index of another kind of files.
            if (directory / each.single).exists():
                return None
            continue
        if (directory / each.single).exists() and each.single not in read_weight_map(path).values():
            raise InputError(
                f"{directory}: holds {each.single} beside {each.index}, which does not name it: some programs read the "
                "one, some the other; remove what is not the model, or give a directory that holds one of them alone"
            )
        return path
    return None


def unread_weights(directory: Path, index: SourceIndex, *, adapter: bool = False) -> tuple[str, ...]:
    """The names of files in a directory that look like weights, or an index of some, and of which `index` has nothing.

    `index` and `adapter` are those of `read_directory`.
    """
    used = {os.path.basename(each.file.path) for each in index.tensors.values()}
    if (chosen := find_index(directory, adapter=adapter)) is not None:
        used.add(chosen.name)
    names = sorted(path.name for path in directory.iterdir())
    return tuple(name for name in names if name.endswith(_LIKE_WEIGHTS) and name not in used | NO_WEIGHTS)


def check_directory(directory: Path, key: str) -> None:
    """Raise `InputError` unless the directory in option `key` exists and can be read."""
    try:
        mode = directory.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{key}={directory}: no such directory{_missing_words(directory, key)}") from None
    except OSError as error:
        raise InputError(system_problem(f"{key}={directory}: cannot be read", error)) from None
    if not stat.S_ISDIR(mode):
        raise InputError(f"{key}={directory}: expected a directory, found {file_words(directory, key)}")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise InputError(f"{key}={directory}: no permission to read this directory")


def _from_index(
    directory: Path, index_path: Path, read: Callable[[Path], list[StoredTensor]], seen: list[SourceFile] | None
) -> SourceIndex:
    weight_map = read_weight_map(index_path, seen)
    tensors = _read_files(directory, sorted(set(weight_map.values())), read)
    problems = []
    for name, shard in weight_map.items():
        if name not in tensors:
            problems.append(f"{index_path}: names the tensor {name} in {shard}, which does not hold it")
        elif (found := os.path.basename(tensors[name].file.path)) != shard:
            problems.append(f"{index_path}: names the tensor {name} in {shard}, but it is in {found}")
    extra = sorted(set(tensors) - set(weight_map))
    if extra:
        problems.append(
            f"{index_path}: does not name {counted(len(extra), 'tensor')} that its shards hold: {named(extra)}"
        )
    raise_if([f"{each}; {_OF_ONE}" for each in problems])
    return SourceIndex(directory=str(directory), tensors=tensors)


def read_weight_map(path: Path, seen: list[SourceFile] | None = None) -> Mapping[str, str]:
    """Read the weight map of an index file: tensor name → name of a shard file in the same directory.

    Raises:
        InputError: the file has no weight map, or a name leaves the directory.
    """
    weight_map = read_object(path, "finding the shards", seen).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: expected an object 'weight_map' from tensor names to shard files")
    problems = []
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_file_name(shard):
            problems.append(f"{path}: tensor {name} is in {shard!r}, which is not the name of a file in this directory")
    raise_if(problems)
    return weight_map


def _read_files(
    directory: Path, names: list[str], read: Callable[[Path], list[StoredTensor]]
) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    unreadable = False

    def attempt(name: str) -> list[StoredTensor] | InputError:
        try:
            return read(directory / name)
        except InputError as error:
            return error

    # This thread has read what names the files, and only waits for them.
    finished()
    for found in on_threads(attempt, names, AT_ONCE):
        if isinstance(found, InputError):
            problems += found.problems
            unreadable |= found.unreadable
            continue
        for tensor in found:
            other = tensors.setdefault(tensor.name, tensor)
            if other is not tensor:
                places = f"{other.file.path} and {tensor.file.path}"
                problems.append(f"tensor {tensor.name} is in both {places}; remove the file that is not of the model")
    if problems:
        raise InputError(problems, unreadable=unreadable)
    return tensors


def _missing_words(directory: Path, key: str) -> str:
    """What a directory of option `key` that is not there may be instead, in words."""
    if directory.is_symlink():
        return f"; it is a link to {os.readlink(directory)}"
    unset = [name for name in _VARIABLE.findall(str(directory)) if name not in os.environ]
    return f"; the variable {unset[0]} is not set" if unset else hub_words(directory, key)
