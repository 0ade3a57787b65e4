"""Producing files: one process's share of a conversion.

Owns the order of creating, filling and synchronising files. Never gives a file its final name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distconv.errors import JobError, system_problem
from distconv.formats.base import FileFormat
from distconv.formats.provenance import Provenance, write_provenance
from distconv.formats.records import OutputFile, Plan
from distconv.options import InputOutput
from distconv.transfer.batches import batches
from distconv.transfer.engine import run
from distconv.transfer.files import OpenFiles, synchronise
from distconv.transfer.sinks import Counters, WriteSink


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files written by a process, by path: sizes in bytes, and the `details` of their `Created`."""

    sizes: dict[str, int]
    details: dict[str, Any]


def write_files(
    plan: Plan,
    files: Sequence[OutputFile],
    directory: Path,
    form: FileFormat,
    io: InputOutput,
    counters: Counters,
    must_stop: Callable[[], bool],
) -> Written:
    """Write this process's files below an existing directory.

    Raises:
        JobError: a read or write failed, or the directory is missing: it is not shared between the nodes.
    """
    if not directory.is_dir():
        raise JobError(f"{directory}: made by the first process, not seen here; target must be on a shared file system")
    written = Written(sizes={}, details={})
    with OpenFiles(os.O_RDONLY) as sources:
        for batch in batches(plan, files):
            paths = {file: str(directory / file.path) for file in batch.files}
            offsets: dict[tuple[OutputFile, str, str], int] = {}
            for file, entries in batch.files.items():
                path = Path(paths[file])
                try:
                    path.parent.mkdir(exist_ok=True)
                    created = form.create(path, file, entries)
                except OSError as error:
                    raise JobError(system_problem(f"creating {path}", error)) from error
                offsets |= {(file, key, name): offset for (key, name), offset in created.offsets.items()}
                written.details[file.path] = created.details
            with OpenFiles(os.O_WRONLY) as targets:
                run(
                    batch.work(paths, offsets),
                    WriteSink(targets, counters),
                    sources,
                    counters,
                    threads=io.threads,
                    buffer_bytes=io.buffer_bytes,
                    must_stop=must_stop,
                )
                if io.fsync:
                    try:
                        synchronise(targets.items())
                    except OSError as error:
                        raise JobError(system_problem(f"making {directory} durable", error)) from error
            written.sizes.update({file.path: os.stat(paths[file]).st_size for file in batch.files})
    return written


def finish(
    written: Written, directory: Path, form: FileFormat, provenance: Provenance | None, *, durable: bool
) -> None:
    """Write the files beside the tensors, the provenance included, and add them to `written`; on rank 0 alone.

    Raises:
        JobError: a write failed.
    """
    try:
        sizes = dict(form.finish(directory, written.details))
        if provenance is not None:
            sizes |= write_provenance(directory, provenance)
        if durable:
            with OpenFiles(os.O_RDONLY) as files:
                synchronise((str(directory / path), files.get(str(directory / path))) for path in sizes)
    except OSError as error:
        raise JobError(system_problem(f"finishing {error.filename or directory}", error)) from error
    written.sizes.update(sizes)
