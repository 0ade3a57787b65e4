"""Verification: one process's share of the comparison, byte for byte, of a result with its plan.

Owns the comparison, and its words, of results and of replicas in a source; a strided replica is compared as runs of
contiguous bytes. Writes nothing.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path

from distconv.formats.base import FileFormat
from distconv.formats.records import Entry, OutputFile, Plan
from distconv.formats.replicas import Replica
from distconv.options import InputOutput
from distconv.tensors.compose import substitute
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Assembled
from distconv.tensors.virtual import Copy, Index, VirtualTensor, invert, whole
from distconv.transfer.batches import Batch, batches
from distconv.transfer.engine import Shard, Work, run
from distconv.transfer.files import OpenFiles
from distconv.transfer.sinks import CompareSink, Counters


def compare_files(
    plan: Plan,
    files: Sequence[OutputFile],
    directory: Path,
    form: FileFormat,
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
                located = form.locate(Path(paths[file]), file, entries)
                differences += located.differences
                offsets |= {(file, key, name): offset for (key, name), offset in located.offsets.items()}
                checked[file] = tuple(entry for entry in entries if (entry.key, entry.name) in located.offsets)
            work = Batch(files=checked).work(paths, offsets)
            # One without elements may begin where another does.
            names = {
                (paths[file], offsets[file, entry.key, entry.name]): entry.title
                for file, entries in checked.items()
                for entry in entries
                if entry.tensor.elements
            }
            differing = _differing(work, names, sources, io, counters, must_stop)
            differences += [f"{place[0]}: {names[place]} differs from the source" for place in differing]
    return differences


def unexpected_files(plan: Plan, form: FileFormat, directory: Path) -> list[str]:
    """The files of the format in a result's directory that its plan does not have, in words."""
    expected = {file.path for file in plan.files}
    found = {path.relative_to(directory).as_posix() for path in directory.rglob(form.pattern)}
    return [f"{directory / path}: is not expected" for path in sorted(found - expected)]


def compare_replicas(
    replicas: Sequence[Replica], io: InputOutput, counters: Counters, must_stop: Callable[[], bool]
) -> list[str]:
    """Compare replicas in the source with their originals; the differences in words.

    Raises:
        JobError: a read failed.
    """
    work = [comparison(each) for each in replicas]
    starts = {
        (shard.path, shard.offset): each for each, part in zip(replicas, work, strict=True) for shard in part.shards
    }
    with OpenFiles(os.O_RDONLY) as sources:
        differing = _differing(work, starts, sources, io, counters, must_stop)
    return list(dict.fromkeys(_difference(starts[place]) for place in differing))


def comparison(replica: Replica) -> Work:
    """The original of a replica as work at the positions of the duplicate, for a sink that compares."""
    (stored,) = replica.duplicate.sources
    item_size = ITEM_SIZE[stored.dtype]
    return Work(
        replica.original.sources,
        tuple(
            Shard(content, stored.file.path, stored.offset + start * item_size)
            for start, content in _runs(replica.duplicate, replica.original.tensor)
        ),
    )


def _runs(copy: Assembled, tensor: VirtualTensor) -> Iterator[tuple[int, VirtualTensor]]:
    """The contiguous runs of storage of a strided `copy`: per run its first element, and its part of `tensor`."""
    shape = copy.sources[0].shape
    if copy.tensor == whole(copy.tensor.dtype, shape):
        yield 0, tensor
        return
    (held,) = invert([copy.tensor], [(copy.tensor.dtype, shape)])
    for box in held.copies:
        # From this dim on, all of the storage is covered.
        dim = len(shape)
        while dim and box.shape[dim - 1] == shape[dim - 1]:
            dim -= 1
        for position in product(*(range(length) for length in box.shape[: dim - 1])) if dim else [()]:
            yield _run(box, position, shape, tensor)


def _run(box: Copy, position: Index, shape: Index, tensor: VirtualTensor) -> tuple[int, VirtualTensor]:
    """The run at a position along the first dims of storage: its first element, and its content."""
    source = list(box.source_start)
    for dim, number in enumerate(position):
        through = box.dims[dim]
        if through is not None:
            source[through] += number
    lengths = box.shape[len(position) :]
    content = Copy(0, tuple(source), (0,) * len(lengths), lengths, box.dims[len(position) :])
    start = sum(number * prod(shape[dim + 1 :]) for dim, number in enumerate(position))
    return start, substitute(VirtualTensor(tensor.dtype, lengths, (content,)), [tensor])


def _differing(
    work: Sequence[Work],
    starts: Iterable[tuple[str, int]],
    sources: OpenFiles,
    io: InputOutput,
    counters: Counters,
    must_stop: Callable[[], bool],
) -> list[tuple[str, int]]:
    """The starts (path, offset) of the tensors whose data differs from the work's results."""
    with OpenFiles(os.O_RDONLY) as targets:
        sink = CompareSink(targets, counters)
        run(
            work,
            sink,
            sources,
            counters,
            threads=io.threads,
            buffer_bytes=io.buffer_bytes,
            must_stop=must_stop,
        )
    positions = sorted(starts)
    return sorted({positions[bisect_right(positions, place) - 1] for place in sink.different})


def _difference(replica: Replica) -> str:
    stored, first = replica.duplicate.sources[0], replica.original.sources[0]
    if stored.name == first.name:
        return (
            f"{stored.file.path}: its copy of {first.name} differs from the one in {first.file.path}; ranks that hold "
            "the same parameter must agree"
        )
    return (
        f"{stored.file.path}: {stored.name} differs from {first.name} in {first.file.path}, to which config.json ties "
        "it (tie_word_embeddings): they must be one"
    )
