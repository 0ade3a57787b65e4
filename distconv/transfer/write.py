"""Producing files: one process's share of a conversion.

Owns the order of creating, filling and synchronising files. Never gives a file its final name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from distconv.commit.modes import is_executable, make_executable
from distconv.errors import JobError, system_problem
from distconv.formats.base import FileFormat
from distconv.formats.frame import write_frame
from distconv.formats.records import OutputFile, Plan
from distconv.runtime.durability import synchronise, synchronise_directory
from distconv.runtime.progress import reached
from distconv.tensors.stored import SourceFile
from distconv.transfer.batches import batches
from distconv.transfer.files import OpenFiles
from distconv.transfer.means import Means
from distconv.transfer.sinks import WriteSink
from distconv.transfer.sources import SourceFiles


def write_files(
    plan: Plan,
    files: Sequence[OutputFile],
    directory: Path,
    form: FileFormat,
    means: Means,
) -> dict[str, int]:
    """Write this process's files below an existing directory; their sizes in bytes by path.

    Raises:
        JobError: a read or write failed, or the directory is missing: it is not shared between the nodes.
    """
    if not directory.is_dir():
        raise JobError(f"{directory}: made by the first process, not seen here; target must be on a shared file system")
    sizes: dict[str, int] = {}
    for batch in batches(plan, files):
        paths = {file: str(directory / file.path) for file in batch.files}
        offsets: dict[tuple[OutputFile, str, str], int] = {}
        for file, entries in batch.files.items():
            path = Path(paths[file])
            reached(path)
            try:
                path.parent.mkdir(exist_ok=True)
                frame = form.frame(file, entries)
                write_frame(path, frame)
            except OSError as error:
                raise JobError(system_problem(f"creating {path}", error)) from error
            holes = zip(entries, frame.holes, strict=True)
            offsets |= {(file, entry.key, entry.name): hole for entry, hole in holes}
        with OpenFiles(os.O_WRONLY) as targets:
            means.produce(batch.work(paths, offsets), WriteSink(targets, means.counters))
            if means.io.fsync:
                try:
                    synchronise(targets.items())
                except OSError as error:
                    raise JobError(system_problem(f"making {directory} durable", error)) from error
        sizes |= {file.path: os.stat(paths[file]).st_size for file in batch.files}
    return sizes


def write_beside(
    directory: Path, beside: Mapping[str, bytes | SourceFile], sources: SourceFiles, *, durable: bool
) -> dict[str, int]:
    """Write the files beside the tensors, given as in `FileFormat.beside`, when all others are there; their sizes.

    Called by rank 0 alone.

    Raises:
        JobError: a write failed, or a read of what is copied; that is another file than it was, or became one.
    """
    try:
        for name, content in beside.items():
            path = directory / name
            reached(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, SourceFile):
                with sources.opened(content):
                    shutil.copyfile(content.path, path)
                    if is_executable(content.path):
                        make_executable(path)
            else:
                path.write_bytes(content)
        sources.check_these(each for each in beside.values() if isinstance(each, SourceFile))
        if durable:
            with OpenFiles(os.O_RDONLY) as files:
                synchronise((str(directory / path), files.get(str(directory / path))) for path in beside)
            # Those that name directories alone, too.
            for parent in {parent for name in beside for parent in PurePosixPath(name).parents}:
                synchronise_directory(str(directory / parent))
        return {name: (directory / name).stat().st_size for name in beside}
    except OSError as error:
        raise JobError(system_problem(f"finishing {error.filename or directory}", error)) from error
