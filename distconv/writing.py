"""Producing files: one process's share of a conversion.

Owns the order of laying out, filling and making durable. Gives nothing its final name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distconv.config import InputOutput
from distconv.errors import JobError
from distconv.files import OpenFiles, synchronise
from distconv.plan import CHECKPOINT_VERSION, OutputFile, Plan
from distconv.sinks import Counters, WriteSink
from distconv.transfer import run
from distconv.work import Batch, batches

LayOut = Callable[..., Mapping[tuple[str, str], int]]


def write_files(
    plan: Plan,
    files: Sequence[OutputFile],
    directory: Path,
    io: InputOutput,
    counters: Counters,
    must_stop: Callable[[], bool],
    lay_out: LayOut,
) -> dict[str, int]:
    """Write this process's files below an existing directory; the size in bytes of each by its path.

    `lay_out` is that of `pt_file`, which the caller imports because torch takes its time.

    Raises:
        JobError: a read or write failed, or the directory is not there: it is not shared between the nodes.
    """
    if not directory.is_dir():
        raise JobError(f"{directory}: made by the first process, not seen here; target must be on a shared file system")
    sizes: dict[str, int] = {}
    with OpenFiles(os.O_RDONLY) as sources:
        for batch in batches(plan, files):
            paths = {file: str(directory / file.path) for file in batch.files}
            offsets: dict[tuple[OutputFile, str, str], int] = {}
            for file in batch.files:
                for (key, name), offset in _lay_out(plan, batch, file, Path(paths[file]), lay_out).items():
                    offsets[file, key, name] = offset
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
                        raise JobError(f"making {directory} durable: {error.strerror}") from error
            sizes |= {file.path: os.stat(paths[file]).st_size for file in batch.files}
    return sizes


def _lay_out(plan: Plan, batch: Batch, file: OutputFile, path: Path, lay_out: LayOut) -> Mapping[tuple[str, str], int]:
    tensors = [(entry.key, entry.name, entry.tensor.dtype, entry.tensor.shape) for entry in batch.files[file]]
    try:
        path.parent.mkdir(exist_ok=True)
        return lay_out(path, plan.dictionaries, tensors, {"checkpoint_version": CHECKPOINT_VERSION})
    except OSError as error:
        raise JobError(f"creating {path}: {error.strerror or error}") from error
