"""Proving an existing result: one process's share of comparing it, byte for byte, with what its source says.

Owns the comparison and its words. Writes nothing.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distconv.config import InputOutput
from distconv.files import OpenFiles
from distconv.plan import CHECKPOINT_VERSION, Entry, OutputFile, Plan
from distconv.sinks import CompareSink, Counters
from distconv.torch_archive import ArchivedTensor, read_archive
from distconv.transfer import run
from distconv.work import Batch, batches


def compare_files(
    plan: Plan,
    files: Sequence[OutputFile],
    directory: Path,
    io: InputOutput,
    counters: Counters,
    must_stop: Callable[[], bool],
) -> list[str]:
    """Compare this process's files, as they are below a directory, with what the plan would write; the differences.

    Raises:
        InputError: a file is missing or damaged.
        JobError: a read failed.
    """
    differences: list[str] = []
    with OpenFiles(os.O_RDONLY) as sources:
        for batch in batches(plan, files):
            paths = {file: str(directory / file.path) for file in batch.files}
            offsets: dict[tuple[OutputFile, str, str], int] = {}
            checked: dict[OutputFile, tuple[Entry, ...]] = {}
            for file, entries in batch.files.items():
                content = read_archive(Path(paths[file]))
                differences += _structure_differences(plan, paths[file], content, entries)
                good = []
                for entry in entries:
                    found = _archived(content, entry.key, entry.name)
                    if found is not None and _mismatch(entry, found) is None:
                        good.append(entry)
                        offsets[file, entry.key, entry.name] = found.offset
                checked[file] = tuple(good)
            with OpenFiles(os.O_RDONLY) as targets:
                sink = CompareSink(targets, counters)
                run(
                    Batch(files=checked).work(paths, offsets),
                    sink,
                    sources,
                    counters,
                    threads=io.threads,
                    buffer_bytes=io.buffer_bytes,
                    must_stop=must_stop,
                )
            starts = sorted((paths[file], offset, f"{key}/{name}") for (file, key, name), offset in offsets.items())
            positions = [(path, offset) for path, offset, _ in starts]
            differing = {starts[bisect_right(positions, place) - 1] for place in sink.different}
            differences += [f"{path}: {name} differs from the source" for path, _, name in sorted(differing)]
    return differences


def _archived(content: Any, key: str, name: str) -> ArchivedTensor | None:
    entries = content.get(key)
    found = entries.get(name) if isinstance(entries, dict) else None
    return found if isinstance(found, ArchivedTensor) else None


def _structure_differences(plan: Plan, path: str, content: Any, entries: Sequence[Entry]) -> list[str]:
    differences = []
    if content.get("checkpoint_version") != CHECKPOINT_VERSION:
        found = content.get("checkpoint_version")
        differences.append(f"{path}: checkpoint_version is {found!r}, expected {CHECKPOINT_VERSION}")
    expected = {(entry.key, entry.name) for entry in entries}
    for key in plan.dictionaries:
        found = content.get(key)
        if not isinstance(found, dict):
            differences.append(f"{path}: has no {key}")
            continue
        differences += [f"{path}: {key}/{name} is not expected" for name in found if (key, name) not in expected]
    for entry in entries:
        mismatch = _mismatch(entry, _archived(content, entry.key, entry.name))
        if mismatch is not None:
            differences.append(f"{path}: {entry.key}/{entry.name} {mismatch}")
    return differences


def _mismatch(entry: Entry, found: ArchivedTensor | None) -> str | None:
    """What is wrong with the tensor of an entry before its data is looked at, if something is."""
    tensor = entry.tensor
    if found is None:
        return "is missing"
    if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
        return f"is {found.dtype} {list(found.shape)}, expected {tensor.dtype} {list(tensor.shape)}"
    return None if found.is_contiguous else "is not contiguous"
