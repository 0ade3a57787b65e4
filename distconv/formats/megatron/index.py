"""The index of a Megatron checkpoint: names, shapes and positions of the tensors in the rank files.

Owns the reading of `mp_rank_*/model_optim_rng.pt` as data, and the agreement of the files of one checkpoint. Knows no
model: `detect` and `bind` interpret the tensors.
Format: the `torch` checkpoint format of Megatron-LM, `megatron/training/checkpointing.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if
from distconv.formats.base import Held
from distconv.formats.iterations import CHECKPOINT_VERSION, RELEASE, VERSION_KEY
from distconv.formats.megatron.directory import find_ranks, rank_directory
from distconv.formats.torch_zip.archive import ArchivedTensor, read_source_archive
from distconv.formats.torch_zip.inert_pickle import Inert, Namespace
from distconv.runtime.hand_out import HandOut, here
from distconv.tensors.compose import strided
from distconv.tensors.stored import SourceFile

_DICTIONARY = re.compile(r"model\d*")
_EXTRA_STATE = "_extra_state"
# Arguments of MindSpeed-LLM's training: experts spread over tensor parallel ranks as well, and the number of these.
_SPREAD, _TP = "moe_tp_extend_ep", "tensor_model_parallel_size"
# A limit above every real iteration that still fits in the name of a directory.
_LAST_ITERATION = 10**12
# Top-level entries that a conversion keeps.
_READ = (VERSION_KEY, "iteration")

Tensors = Mapping[tuple[str, str], ArchivedTensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankFile:
    """The file of one rank: the numbers in the name of its directory, and (dictionary, name) → tensor."""

    rank: tuple[int, ...]
    file: SourceFile
    tensors: Tensors


@dataclass(frozen=True, kw_only=True, eq=False)
class MegatronIndex:
    """One iteration of a Megatron checkpoint.

    `iteration`: `release` or a number. `dictionaries`: the keys of the dictionaries of tensors, one per virtual stage.
    `others`: the names of all other top-level entries of the files.
    """

    directory: str
    iteration: str
    dictionaries: tuple[str, ...]
    files: tuple[RankFile, ...]
    others: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """The largest rank in the names of directories, and the number of virtual stages."""
        last = rank_directory(max(file.rank for file in self.files))
        virtual = f", {len(self.dictionaries)} virtual stages" if len(self.dictionaries) > 1 else ""
        return {"ranks": f"{len(self.files)} up to {last}{virtual}"}

    def held(self) -> Iterator[Held]:
        """The tensors of all files; `file` is the directory of the rank."""
        for file in self.files:
            rank = Path(file.file.path).parent.name
            for (key, name), each in file.tensors.items():
                yield Held(rank, f"{key}/{name}", each.dtype, each.shape)

    @property
    def config(self) -> None:
        """Megatron checkpoints have no configuration that describes a published model."""

    @property
    def looked_at(self) -> Iterator[SourceFile]:
        """The files of the ranks."""
        return (each.file for each in self.files)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data for sharing with other processes; ranks with equal tensors share one description."""
        forms: dict[tuple[Any, ...], int] = {}
        patterns: dict[tuple[int, ...], int] = {}
        files = []
        for each in self.files:
            pattern = tuple(
                forms.setdefault((*name, tensor.dtype, tensor.shape, tensor.strides), len(forms))
                for name, tensor in each.tensors.items()
            )
            number = patterns.setdefault(pattern, len(patterns))
            offsets = [tensor.offset for tensor in each.tensors.values()]
            files.append([each.rank, each.file.to_json(), number, offsets])
        return {
            "directory": self.directory,
            "iteration": self.iteration,
            "dictionaries": self.dictionaries,
            "others": self.others,
            "forms": list(forms),
            "patterns": list(patterns),
            "files": files,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> MegatronIndex:
        """The index described by `to_json`."""
        forms = [
            ((key, name), dtype, tuple(shape), tuple(strides)) for key, name, dtype, shape, strides in data["forms"]
        ]
        files = []
        for rank, file, pattern, offsets in data["files"]:
            tensors = {}
            for number, offset in zip(data["patterns"][pattern], offsets, strict=True):
                name, dtype, shape, strides = forms[number]
                tensors[name] = ArchivedTensor(dtype, shape, strides, offset)
            files.append(RankFile(rank=tuple(rank), file=SourceFile.from_json(file), tensors=tensors))
        return MegatronIndex(
            directory=data["directory"],
            iteration=data["iteration"],
            dictionaries=tuple(data["dictionaries"]),
            files=tuple(files),
            others=tuple(data["others"]),
        )


def read_megatron(directory: Path, iteration: str | None, hand_out: HandOut = here) -> MegatronIndex:
    """Read the index of an iteration; without `iteration`, of that of the tracker file, or the only one.

    Raises:
        InputError: directories as in `find_ranks`; a file that is damaged or cannot be used; files of different
            checkpoints.
    """
    ranks = find_ranks(directory, iteration)
    paths = list(map(str, ranks.paths.values()))
    contents = dict(zip(paths, hand_out(read_rank_file, paths), strict=True))
    dictionaries = {path: tuple(key for key, _ in each["tensors"]) for path, each in contents.items()}
    _check_same({path: ", ".join(keys) for path, keys in dictionaries.items()}, "dictionaries of tensors")
    iterations = {path: each["iteration"] for path, each in contents.items() if each["iteration"] is not None}
    _check_same({path: f"iteration {number}" for path, number in iterations.items()}, "iteration")
    files = tuple(
        RankFile(
            rank=rank,
            file=SourceFile.from_json(contents[path]["file"]),
            tensors={
                (key, name): ArchivedTensor(dtype, tuple(shape), tuple(strides), offset)
                for key, tensors in contents[path]["tensors"]
                for name, dtype, shape, strides, offset in tensors
            },
        )
        for rank, path in zip(ranks.paths, paths, strict=True)
    )
    if not any(file.tensors for file in files):
        found = named(path.parent.name for path in ranks.paths.values())
        raise InputError(
            f"{ranks.directory}: no file holds a tensor of a model: {found}; if they are of pipeline stages without "
            "layers, the directories of the others are missing"
        )
    return MegatronIndex(
        directory=str(ranks.directory),
        iteration=ranks.iteration or next(map(str, iterations.values()), RELEASE),
        dictionaries=next(iter(dictionaries.values())),
        files=files,
        others=tuple(dict.fromkeys(name for content in contents.values() for name in content["others"])),
    )


def read_rank_file(path: str) -> dict[str, Any]:
    """Read one file, as plain data: its identity, tensors by dictionary, iteration, names of other entries.

    Raises:
        InputError: the file is damaged, or holds no tensors of a model.
    """
    content, file = read_source_archive(Path(path))
    version = content.get(VERSION_KEY)
    if version is not None and version != CHECKPOINT_VERSION:
        raise InputError(
            f"{path}: {VERSION_KEY} is {_shown(version)}, expected {CHECKPOINT_VERSION}: older ones order qkv in "
            "another way; load and save it with a current Megatron first"
        )
    keys = sorted(name for name in content if isinstance(name, str) and _DICTIONARY.fullmatch(name))
    virtual = [f"model{number}" for number in range(len(keys))]
    if not keys or (keys != ["model"] and keys != sorted(virtual)):
        expected = "model, or model0, model1 … for virtual stages"
        raise InputError(f"{path}: expected {expected}; found {', '.join(keys) or named(content)}")
    iteration = content.get("iteration")
    if type(iteration) is int and not 0 <= iteration <= _LAST_ITERATION:
        found = "a negative" if iteration < 0 else "a larger"
        raise InputError(f"{path}: expected an iteration from 0 to 10^12, found {found} one")
    args = content.get("args")
    if isinstance(args, Namespace) and args.values.get(_SPREAD) is True and args.values.get(_TP) != 1:
        raise InputError(
            f"{path}: was trained with --{_SPREAD.replace('_', '-')}, which gives experts to pairs of tensor and "
            "expert parallel ranks: nothing in grouped experts shows it, and distconv does not know this layout; save "
            "it without"
        )
    tensors = [(key, _tensors(path, key, content[key])) for key in (keys if keys == ["model"] else virtual)]
    states = any(_is_extra_state(name) and not _is_empty(entry) for key in keys for name, entry in content[key].items())
    return {
        "file": file.to_json(),
        "iteration": iteration if type(iteration) is int else None,
        "tensors": [
            (key, [(name, each.dtype, each.shape, each.strides, each.offset) for name, each in entries.items()])
            for key, entries in tensors
        ],
        "others": [
            *(str(name) for name in content if name not in (*keys, *_READ)),
            *([_EXTRA_STATE] if states else []),
        ],
    }


def _shown(value: Any) -> str:
    """A value of a pickle in a message; nested values, which may be cyclic, by their type alone."""
    return repr(value) if isinstance(value, (float, str)) or type(value) is int else type(value).__name__


def _tensors(path: str, key: str, entries: Any) -> Mapping[str, ArchivedTensor]:
    if not isinstance(entries, Mapping):
        raise InputError(f"{path}: {key} is {type(entries).__name__}, expected a dictionary of tensors")
    tensors: dict[str, ArchivedTensor] = {}
    problems = []
    for name, entry in entries.items():
        if _is_extra_state(name) or entry is None:
            continue
        if not isinstance(name, str) or not isinstance(entry, ArchivedTensor):
            problems.append(f"{path}: {key}/{name} is {type(entry).__name__}, expected a tensor")
            continue
        try:
            if not entry.is_contiguous:
                strided(entry.dtype, entry.shape, entry.strides)
        except ValueError as error:
            problems.append(f"{path}: {key}/{name}: {error}; save it again as a contiguous tensor")
        tensors[name] = entry
    raise_if(problems)
    return tensors


def _is_extra_state(name: object) -> bool:
    """Whether an entry is a module's extra state, such as the scales of 8-bit arithmetic."""
    return isinstance(name, str) and name.endswith(_EXTRA_STATE)


def _is_empty(entry: object) -> bool:
    return isinstance(entry, (type(None), Inert)) or (isinstance(entry, ArchivedTensor) and 0 in entry.shape)


def _check_same(found: Mapping[str, str], what: str) -> None:
    first: dict[str, str] = {}
    for path, each in found.items():
        first.setdefault(each, path)
    if len(first) > 1:
        described = ", ".join(f"{path} has {each}" for each, path in first.items())
        raise InputError(
            f"the files are of different checkpoints: they differ in {what}: {described}; give those of one"
        )
