"""Proving an existing result: one process's share of comparing it, byte for byte, with what its source says.

Owns the comparison and its words, of results and of replicas in a source. The frame of a file is compared with that of
the plan; only one that differs is read, to say what is wrong with it. A tensor that lies in storage with strides is
compared as the runs of contiguous bytes that it consists of. Writes nothing.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product, zip_longest
from math import prod
from pathlib import Path

from distconv.errors import InputError, SourceChangedError, system_problem
from distconv.formats.base import FileFormat, Located
from distconv.formats.frame import first_difference
from distconv.formats.records import Entry, Offsets, OutputFile, Plan
from distconv.tensors.compose import substitute
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.replicas import Replica
from distconv.tensors.stored import Assembled
from distconv.tensors.virtual import Copy, Index, VirtualTensor, invert, whole
from distconv.transfer.batches import Batch, batches
from distconv.transfer.engine import Shard, Work
from distconv.transfer.files import OpenFiles
from distconv.transfer.means import Means
from distconv.transfer.sinks import CompareSink, Readable
from distconv.transfer.sources import ByPath


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was found of a result, in words: its differences from the plan, and notes that are none."""

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def explain(self, path: Path, at: int, expected: str, locate: Callable[[], Located]) -> Offsets:
        """Add what is wrong with a file whose first other byte is at `at`; where its tensors are all the same."""
        try:
            located = locate()
        except InputError as error:
            self.differences.extend(error.problems)
            return {}
        self.differences.extend(located.differences)
        if not located.differences and located.foreign:
            self.notes.append(
                f"{path}: was written by torch, as earlier versions did; its tensors were compared, not its frame"
            )
        elif not located.differences:
            self.differences.append(f"{path}: differs from {expected} at byte {at:,}")
        return located.offsets


def together(found: Iterable[Mapping[str, list[str]]]) -> Compared:
    """What several processes found, as plain data; what several say, such as of a common file, once."""
    everything = list(found)
    return Compared(
        differences=list(dict.fromkeys(line for each in everything for line in each["differences"])),
        notes=list(dict.fromkeys(line for each in everything for line in each["notes"])),
    )


def compare_files(
    plan: Plan,
    files: Sequence[OutputFile],
    directory: Path,
    form: FileFormat,
    means: Means,
) -> Compared:
    """Compare this process's files, as they are below a directory, with what the plan would write.

    A file that is missing or damaged is a difference. What cannot be compared counts as done.

    Raises:
        JobError: a read failed.
    """
    compared = Compared()
    for batch in batches(plan, files):
        paths = {file: str(directory / file.path) for file in batch.files}
        offsets: dict[tuple[OutputFile, str, str], int] = {}
        checked: dict[OutputFile, tuple[Entry, ...]] = {}
        for file, entries in batch.files.items():
            found = _offsets(form, Path(paths[file]), file, entries, compared)
            offsets |= {(file, key, name): offset for (key, name), offset in found.items()}
            checked[file] = tuple(entry for entry in entries if (entry.key, entry.name) in found)
        nbytes = sum(entry.tensor.nbytes for entries in checked.values() for entry in entries)
        means.counters.add(done=sum(file.nbytes for file in batch.files) - nbytes)
        work = Batch(files=checked).work(paths, offsets)
        # One without elements may begin where another does.
        names = {
            (paths[file], offsets[file, entry.key, entry.name]): entry.title
            for file, entries in checked.items()
            for entry in entries
            if entry.tensor.elements
        }
        with OpenFiles(os.O_RDONLY) as results:
            differing = _differing(work, names, results, means)
        compared.differences.extend(f"{place[0]}: {names[place]} differs from the source" for place in differing)
    return compared


def _offsets(form: FileFormat, path: Path, file: OutputFile, entries: Sequence[Entry], compared: Compared) -> Offsets:
    """Where the tensors of a file are that can be compared; what is wrong with the rest of the file is added."""
    frame = form.frame(file, entries)
    try:
        at = first_difference(path, frame)
    except OSError as error:
        compared.differences.append(system_problem(f"{path}: cannot be compared", error))
        return {}
    if at is None:
        return {(entry.key, entry.name): hole for entry, hole in zip(entries, frame.holes, strict=True)}
    return compared.explain(path, at, "what is written today", lambda: form.locate(path, file, entries))


def compare_replicas(copies: Sequence[Replica], means: Means) -> list[str]:
    """Compare stored copies of the source with what they are copies of; the differences.

    Raises:
        InputError: the source is being changed; nothing has been written yet.
        JobError: a read failed.
    """
    work = [comparison(each) for each in copies]
    starts = {
        (shard.path, shard.offset): each for each, part in zip(copies, work, strict=True) for shard in part.shards
    }
    copied = {file.path: file for each in copies for file in (stored.file for stored in each.copy.sources)}
    try:
        differing = _differing(work, starts, ByPath(means.sources, copied), means)
    except SourceChangedError as error:
        raise InputError(error.problems) from None
    return list(dict.fromkeys(_difference(starts[place]) for place in differing))


def comparison(replica: Replica) -> Work:
    """The original of a replica in the places of its copy, for a sink that compares."""
    (stored,) = replica.copy.sources
    item_size = ITEM_SIZE[stored.dtype]
    return Work(
        replica.original.sources,
        tuple(
            Shard(content, stored.file.path, stored.offset + start * item_size)
            for start, content in _runs(replica.copy, replica.original.tensor)
        ),
    )


def _runs(copy: Assembled, tensor: VirtualTensor) -> Iterator[tuple[int, VirtualTensor]]:
    """The runs of storage that a copy covers: the first element of each, and what must be there."""
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
    first = [low + number for low, number in zip_longest(box.target_start, position, fillvalue=0)]
    start = sum(number * prod(shape[dim + 1 :]) for dim, number in enumerate(first))
    return start, substitute(VirtualTensor(tensor.dtype, lengths, (content,)), [tensor])


def _differing(
    work: Sequence[Work], starts: Iterable[tuple[str, int]], results: Readable, means: Means
) -> list[tuple[str, int]]:
    """Those of the starts of tensors (path, offset) from which on what the work makes is not what is there."""
    sink = CompareSink(results, means.counters)
    means.produce(work, sink)
    positions = sorted(starts)
    return sorted({positions[bisect_right(positions, place) - 1] for place in sink.different})


def _difference(replica: Replica) -> str:
    stored, first = replica.copy.sources[0], replica.original.sources[0]
    if stored.name == first.name:
        return (
            f"{stored.file.path}: its copy of {first.name} differs from the one in {first.file.path}; {replica.reason}"
        )
    return f"{stored.file.path}: {stored.name} differs from {first.name} in {first.file.path}, {replica.reason}"
