"""Producing files: one process's share of a conversion.

Owns the order of creating, filling, synchronising and journaling files. Never gives a file its final name.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zlib import crc32

from distconv.commit.journal import Finished, Journal
from distconv.commit.modes import is_executable, make_executable
from distconv.errors import JobError, system_problem
from distconv.formats.base import FileFormat
from distconv.formats.frame import Frame, heads, write_frame
from distconv.formats.records import Entry, OutputFile, Plan, Written
from distconv.input_output import InputOutput
from distconv.runtime.durability import synchronise, synchronise_directory
from distconv.runtime.hand_out import on_threads
from distconv.runtime.progress import reached
from distconv.tensors.stored import SourceFile
from distconv.transfer.batches import Batch, batches
from distconv.transfer.checksum import Checksums
from distconv.transfer.crew import Portion
from distconv.transfer.files import OpenFiles
from distconv.transfer.means import Means
from distconv.transfer.sinks import WriteSink
from distconv.transfer.sources import SourceFiles

# Batches that are under way; files of theirs that may be open when another one is begun.
_AT_A_TIME, _MOST_OPEN = 2, 64
# Files beside the tensors that are written at a time: they are few bytes and many requests.
_BESIDE_AT_A_TIME = 8


def write_files(
    plan: Plan,
    files: Sequence[OutputFile],
    directory: Path,
    form: FileFormat,
    means: Means,
    journal: Journal,
) -> dict[str, Written]:
    """Write this process's files below an existing directory, by path; those that are finished enter the journal.

    Raises:
        JobError: a read or write failed, or the directory is missing: it is not shared between the nodes.
    """
    check_seen(directory)
    done: dict[str, Written] = {}
    checksums = Checksums() if means.io.checksum else None

    def end(batch: Batch) -> None:
        written = {file.path: _written(str(directory / file.path), checksums) for file in batch.files}
        finished = {
            path: Finished(written=each, durable=means.io.fsync, overflowed=means.counters.overflowed_in(path))
            for path, each in written.items()
        }
        add_to(journal, finished)
        done.update(written)

    laid_out = (
        (batch, {file: lay_out(file, entries, directory, form) for file, entries in batch.files.items()})
        for batch in batches(plan, files)
    )
    fill(laid_out, directory, means, checksums, end)
    return done


def add_to(journal: Journal, finished: Mapping[str, Finished]) -> None:
    """Add files that are finished, by path, to a journal.

    Raises:
        JobError: it cannot be written.
    """
    try:
        journal.add(finished)
    except OSError as error:
        raise JobError(system_problem(f"writing {journal.path}", error)) from error


def check_seen(directory: Path) -> None:
    """Raise `JobError` unless this process sees the directory that rank 0 has made."""
    if not directory.is_dir():
        raise JobError(f"{directory}: made by the first process, not seen here; target must be on a shared file system")


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """Where a file, or a part of one, gets its data: the offset in bytes for each entry.

    `heads`: offset → the bytes in front of data, which are written with it; `rest`: all of the file but data and heads.
    """

    holes: Sequence[int]
    heads: Mapping[int, bytes]
    rest: Frame


def lay_out(file: OutputFile, entries: Sequence[Entry], directory: Path, form: FileFormat) -> LaidOut:
    """Create a file with these entries, at its size; its data and its heads are still to be written.

    Raises:
        JobError: it cannot be written.
    """
    path = directory / file.path
    reached(path)
    try:
        path.parent.mkdir(exist_ok=True)
        found = laid_out(file, entries, form)
        write_frame(path, found.rest)
    except OSError as error:
        raise JobError(system_problem(f"creating {path}", error)) from error
    return found


def laid_out(file: OutputFile, entries: Sequence[Entry], form: FileFormat) -> LaidOut:
    """A file with these entries as `lay_out` creates it."""
    frame = form.frame(file, entries)
    before, rest = heads(frame, (entry.tensor.nbytes for entry in entries))
    return LaidOut(holes=frame.holes, heads=before, rest=rest)


def fill(
    laid_out: Iterable[tuple[Batch, Mapping[OutputFile, LaidOut]]],
    directory: Path,
    means: Means,
    checksums: Checksums | None,
    end: Callable[[Batch], None],
) -> None:
    """Fill the files of batches, and make them durable if that is wanted; `end` is called when a batch is.

    Threads go on to the next batch, which is laid out when it is asked for, before one has ended: else all would wait
    for the last request of a file, the disk, and the first request of the next file.

    Raises:
        JobError: a read or a write failed.
    """
    under_way: deque[tuple[Batch, list[str], Portion]] = deque()
    with OpenFiles(os.O_WRONLY) as targets, means.crew() as crew:

        def finish() -> None:
            batch, paths, portion = under_way.popleft()
            crew.wait(portion)
            _close(paths, targets, directory, means.io)
            end(batch)

        for batch, found in laid_out:
            paths = {file: str(directory / file.path) for file in batch.files}
            offsets, in_front = _places(batch, found, paths)
            if checksums is not None:
                for file, path in paths.items():
                    checksums.add_all(path, found[file].rest.pieces)
            sink = WriteSink(targets, means.counters, checksums, in_front)
            under_way.append((batch, list(paths.values()), crew.begin(batch.work(paths, offsets), sink)))
            while len(under_way) == _AT_A_TIME or sum(len(each) for _, each, _ in under_way) > _MOST_OPEN:
                finish()
        while under_way:
            finish()


def _places(
    batch: Batch, laid_out: Mapping[OutputFile, LaidOut], paths: Mapping[OutputFile, str]
) -> tuple[dict[tuple[OutputFile, str, str], int], dict[tuple[str, int], bytes]]:
    """The offsets in bytes of the entries of a batch, as `Batch.work` takes them, and what belongs in front of data."""
    offsets: dict[tuple[OutputFile, str, str], int] = {}
    in_front: dict[tuple[str, int], bytes] = {}
    for file, entries in batch.files.items():
        in_front |= {(paths[file], offset): head for offset, head in laid_out[file].heads.items()}
        holes = zip(entries, laid_out[file].holes, strict=True)
        offsets |= {(file, entry.key, entry.name): hole for entry, hole in holes}
    return offsets, in_front


def _close(paths: Sequence[str], files: OpenFiles, directory: Path, io: InputOutput) -> None:
    """Close files that are full, after they are durable if that is wanted.

    Raises:
        JobError: they cannot be made durable.
    """
    try:
        if io.fsync:
            # Those without tensors, too.
            synchronise((path, files.get(path)) for path in paths)
    except OSError as error:
        raise JobError(system_problem(f"making {directory} durable", error)) from error
    for path in paths:
        files.close(path)


def _written(path: str, checksums: Checksums | None) -> Written:
    """A file that is written, with its checksum if those were computed."""
    nbytes = os.stat(path).st_size
    return Written(nbytes, None if checksums is None else checksums.taken(path, nbytes))


def write_beside(
    directory: Path, beside: Mapping[str, bytes | SourceFile], sources: SourceFiles, io: InputOutput
) -> dict[str, Written]:
    """Write the files beside the tensors, given as in `FileFormat.beside`, when all others are there.

    Called by rank 0 alone.

    Raises:
        JobError: a write failed, or a read of what is copied; that is another file than it was, or became one.
    """

    def write(name: str) -> Written:
        return _write_whole(directory / name, beside[name], sources, io)

    try:
        done = dict(zip(beside, on_threads(write, list(beside), _BESIDE_AT_A_TIME), strict=True))
        sources.check_these(each for each in beside.values() if isinstance(each, SourceFile))
        if io.fsync:
            with OpenFiles(os.O_RDONLY) as files:
                synchronise((str(directory / path), files.get(str(directory / path))) for path in beside)
            # Those that name directories alone, too.
            for parent in {parent for name in beside for parent in PurePosixPath(name).parents}:
                synchronise_directory(str(directory / parent))
    except OSError as error:
        raise JobError(system_problem(f"finishing {error.filename or directory}", error)) from error
    return done


def _write_whole(path: Path, content: bytes | SourceFile, sources: SourceFiles, io: InputOutput) -> Written:
    """Write a file with this content, or with that of a file, which may be executable."""
    reached(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbytes = checksum = 0
    with path.open("wb") as stream:
        for piece in sources.pieces(content) if isinstance(content, SourceFile) else [content]:
            stream.write(piece)
            nbytes += len(piece)
            checksum = crc32(piece, checksum)
    if isinstance(content, SourceFile) and is_executable(content.path):
        make_executable(path)
    return Written(nbytes, checksum if io.checksum else None)
