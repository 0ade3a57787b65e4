"""The files that say how a training is cut: which kind each is, and reading it.

Owns the recognition. A path that is named inside of one of them is never followed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from distconv.errors import InputError, raise_if, reading
from distconv.formats.jsonfile import parse_object
from distconv.formats.registry import found_in
from distconv.formats.torch_zip.archive import read_source_archive
from distconv.formats.torch_zip.inert_pickle import Namespace
from distconv.runtime.identity import read_whole
from distconv.tensors.stored import SourceFile
from distconv.training.arguments import layout_of_arguments
from distconv.training.model_file import layout_of_model_file
from distconv.training.script import layout_of_script
from distconv.training.told import Told

# A script or model file of more bytes is none.
_LARGEST = 2**22
_KINDS = (
    "a launch script, a model file of MindSpeed-MM (.json), or a checkpoint of Megatron, whose arguments of training "
    "say it"
)


def told_by_files(paths: Sequence[Path], seen: list[SourceFile]) -> list[Told]:
    """What files of a training say of its layout; `seen` gets their identities.

    Raises:
        InputError: all that cannot be read, or say nothing of it.
    """
    told, problems = [], []
    for path in paths:
        try:
            told.append(_told_by(path, seen))
        except InputError as error:
            problems += error.problems
    raise_if(problems)
    return told


def _told_by(path: Path, seen: list[SourceFile]) -> Told:
    where = f"layout.from={path}"
    if path.is_dir():
        return _of_checkpoint(path, seen)
    with reading(where, f"no such file; expected {_KINDS}"):
        if path.suffix == ".pt":
            return _of_archive(path, seen)
        if os.stat(path).st_size > _LARGEST:
            raise InputError(f"{where}: is larger than {_LARGEST:,} bytes; expected {_KINDS}")
        content, file = read_whole(path)
    seen.append(file)
    if path.suffix == ".json":
        return layout_of_model_file(str(path), parse_object(content, where))
    try:
        told = layout_of_script(str(path), content.decode())
    except UnicodeDecodeError:
        told = None
    if told is None:
        raise InputError(f"{where}: says no size of a parallel axis; expected {_KINDS}")
    return told


def _of_checkpoint(directory: Path, seen: list[SourceFile]) -> Told:
    """What the arguments in a checkpoint say."""
    path = found_in(directory).form.arguments_file(directory)
    if path is None:
        raise InputError(f"layout.from={directory}: holds no arguments of training; expected {_KINDS}")
    return _of_archive(path, seen)


def _of_archive(path: Path, seen: list[SourceFile]) -> Told:
    content, file = read_source_archive(path)
    seen.append(file)
    args = content.get("args")
    if not isinstance(args, Namespace):
        raise InputError(
            f"layout.from={path}: holds no arguments of training, as published or converted ones do not; give a file "
            "of training"
        )
    return layout_of_arguments(f"{path}: args", args.values)
