"""What training saved beside the tensors: the common part of a checkpoint, and the configuration in it.

Owns the reading of `common.pt`, or of the entry that has taken its place since Megatron-core 0.19, as data. Compares
nothing with a model.
"""

from __future__ import annotations

import _compat_pickle
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if
from distconv.formats.dcp.index import DcpDirectory
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.foreign import KIND_NAME
from distconv.formats.iterations import CHECKPOINT_VERSION, RELEASE, VERSION_KEY, iteration_of
from distconv.formats.torch_dist.keys import COMMON_STATE
from distconv.formats.torch_dist.sizes import Told, told_by
from distconv.formats.torch_zip.archive import read_source_archive
from distconv.formats.torch_zip.blobs import stored_within
from distconv.formats.torch_zip.inert_pickle import Namespace
from distconv.tensors.stored import SourceFile

COMMON_NAME = "common.pt"
# Entries that say how the rest was saved.
_OF_SAVING = ("args", VERSION_KEY, "iteration", "content_metadata", "num_floating_point_operations_so_far")
# Of the standard library, what arguments of training are made of; everything else there would be called.
_HARMLESS = re.compile(
    r"(argparse\.Namespace|types\.(SimpleNamespace|MappingProxyType|GenericAlias)|functools\.partial|uuid\.UUID"
    r"|collections\.(OrderedDict|defaultdict|deque|Counter)|copy_?reg\.(_reconstructor|__newobj__|__newobj_ex__)"
    r"|datetime\.(date|time|datetime|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction|enum\.\w*(Enum|Flag)"
    r"|pathlib(\._local)?\.\w*Path|signal\.(Signals|Handlers)|re\._compile|typing\.\w+|operator\.getitem|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|frozenset|list|dict|tuple|slice|x?range|complex|bytes|bytearray|str|unicode|int|long"
    r"|float|bool|object|getattr))"
)
# Under the names of today, and those that pickles have for readers of Python 2.
_STANDARD = frozenset({*sys.stdlib_module_names, *_compat_pickle.IMPORT_MAPPING})


@dataclass(frozen=True, kw_only=True)
class Common:
    """The common part of a checkpoint: the sizes that the arguments of training tell, and its iteration.

    `others`: the names of its entries that are state of training.
    """

    told: Told | None = None
    iteration: int | None = None
    others: tuple[str, ...] = ()


def read_common(checkpoint: DcpDirectory, seen: list[SourceFile], *, is_file: bool) -> Common:
    """Read the common part of a checkpoint; the identity of its file is added to `seen`.

    `is_file`: the checkpoint says that it has one.

    Raises:
        InputError: it is missing or damaged, names what would be executed, or is of another iteration or version.
    """
    path = checkpoint.directory / COMMON_NAME
    names: set[str] = set()
    if path.exists():
        where = str(path)
        content, file = read_source_archive(path, names)
        seen.append(file)
    elif places := checkpoint.metadata.blobs.get(COMMON_STATE):
        where = f"{checkpoint.directory / places[0].file}: {COMMON_STATE}"
        with stored_within(checkpoint.directory / places[0].file, names) as read:
            held = read(places[0].offset, places[0].length)
        content = held[0] if isinstance(held, list) and held else held
    elif is_file:
        raise InputError(
            f"{path}: no such file; {KIND_NAME} beside it says that the checkpoint has one, which says the iteration "
            "and how training was configured: the checkpoint was not copied completely"
        )
    else:
        return Common()
    _check_names(where, names)
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: expected a dictionary, found {type(content).__name__}")
    _check_version(where, content)
    iteration = content.get("iteration")
    _check_iteration(where, iteration, checkpoint)
    args = content.get("args")
    values = args.values if isinstance(args, Namespace) else {}
    return Common(
        told=told_by(f"{where}: args", values),
        iteration=iteration if type(iteration) is int else None,
        others=tuple(str(name) for name in content if name not in _OF_SAVING),
    )


def _check_names(where: str, names: Collection[str]) -> None:
    executed = [name for name in sorted(names) if name.partition(".")[0] in _STANDARD and not _HARMLESS.fullmatch(name)]
    if executed:
        raise InputError(
            f"{where}: names {named(executed)}, which no arguments of training need; nothing of it was executed, and "
            "loading it with torch would; do not use it unless you know where it is from"
        )


def _check_version(where: str, content: Mapping[Any, Any]) -> None:
    version = content.get(VERSION_KEY)
    if version is not None and version != CHECKPOINT_VERSION:
        shown = repr(version) if isinstance(version, float) else type(version).__name__
        raise InputError(f"{where}: {VERSION_KEY} is {shown}, expected {CHECKPOINT_VERSION}")


def _check_iteration(where: str, iteration: object, checkpoint: DcpDirectory) -> None:
    """Compare the iteration with the name of the directory, and with that of the one that the metadata was saved in."""
    if type(iteration) is not int:
        return
    here, saved = checkpoint.directory.resolve(), Path(checkpoint.metadata.saved_in)
    others = {f"its directory is {here.name}": here, f"{METADATA} was saved in {saved.name}": saved}
    raise_if(
        [
            f"{where}: is of iteration {iteration}, but {words}: files of two checkpoints are mixed"
            for words, path in others.items()
            if iteration_of(path) not in (None, RELEASE, str(iteration))
        ]
    )
