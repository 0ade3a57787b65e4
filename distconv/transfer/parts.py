"""Files that several processes write together: each the data of some consecutive entries, with what is in front of it.

Owns the order of that: the writer of the first part creates the file at its size before any other opens it; all write
their ranges and make them durable; the file is finished when its parts, put together, are all of it. Before that it is
in no journal, so a job that continues another one makes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from distconv.commit.journal import Finished
from distconv.formats.base import FileFormat
from distconv.formats.records import FilePart, OutputFile, Plan, Written, all_entries
from distconv.input_output import ALWAYS, AUTO, InputOutput
from distconv.runtime.file_systems import keeps_writers_apart
from distconv.runtime.mounts import mounts
from distconv.transfer.batches import Batch, batches
from distconv.transfer.checksum import Checksums, Piece, checksum_of_pieces
from distconv.transfer.means import Means
from distconv.transfer.overflow import Overflowed, all_overflowed
from distconv.transfer.write import LaidOut, check_seen, fill, laid_out, lay_out


def may_be_shared(directory: Path, io: InputOutput) -> bool:
    """Whether several processes may write one file in a directory, which need not be there, as this process sees it."""
    return keeps_writers_apart(directory, mounts()) if io.shared_files == AUTO else io.shared_files == ALWAYS


class WrittenPart(NamedTuple):
    """What a process tells of its part: the size in bytes of the whole file, and what it has written of it.

    `pieces`: its ranges, with checksums; `None` where none were computed. `overflowed` as in `Finished`.
    """

    nbytes: int
    pieces: Sequence[Piece] | None
    overflowed: Overflowed


def create_shared(plan: Plan, parts: Sequence[FilePart], directory: Path, form: FileFormat) -> None:
    """Create the files of which this process has the first part; called by all processes before any goes on.

    Raises:
        JobError: one cannot be written, or the directory is missing: it is not shared between the nodes.
    """
    check_seen(directory)
    for part in parts:
        if part.is_first:
            lay_out(part.whole, all_entries(plan, part), directory, form)


def write_parts(
    plan: Plan, parts: Sequence[FilePart], directory: Path, form: FileFormat, means: Means
) -> dict[str, WrittenPart]:
    """Write the parts of a process into files that are there; what `finished_files` needs of each, by path.

    Raises:
        JobError: a read or a write failed.
    """
    told: dict[str, WrittenPart] = {}
    sizes: dict[str, int] = {}
    checksums = Checksums() if means.io.checksum else None

    def own_parts() -> Iterator[tuple[Batch, Mapping[OutputFile, LaidOut]]]:
        for batch in batches(plan, parts):
            frames = {
                part: laid_out(part.whole, all_entries(plan, part), form) for part in parts if part in batch.files
            }
            sizes.update((part.path, frame.rest.nbytes) for part, frame in frames.items())
            yield batch, {part: _own(part, frame) for part, frame in frames.items()}

    def end(batch: Batch) -> None:
        for path in (part.path for part in batch.files):
            pieces = None if checksums is None else checksums.pieces(str(directory / path))
            told[path] = WrittenPart(sizes[path], pieces, means.counters.overflowed_in(path))

    fill(own_parts(), directory, means, checksums, end)
    return told


def finished_files(directory: Path, told: Iterable[Mapping[str, WrittenPart]], *, durable: bool) -> dict[str, Finished]:
    """The files whose parts all processes have told of, by path below the directory.

    Raises:
        JobError: the parts of a file are not all of it.
    """
    parts: dict[str, list[WrittenPart]] = {}
    for each in told:
        for path, part in each.items():
            parts.setdefault(path, []).append(part)
    return {path: _finished(str(directory / path), own, durable=durable) for path, own in parts.items()}


def _own(part: FilePart, whole: LaidOut) -> LaidOut:
    """What of a file is laid out for a part of it; what is in front of no data was written with the first."""
    rest = whole.rest if part.is_first else replace(whole.rest, pieces=())
    return LaidOut(holes=whole.holes[part.start : part.stop], heads=whole.heads, rest=rest)


def _finished(path: str, parts: Sequence[WrittenPart], *, durable: bool) -> Finished:
    nbytes = parts[0].nbytes
    pieces = [piece for part in parts for piece in part.pieces or ()]
    summed = all(part.pieces is not None for part in parts)
    overflowed = all_overflowed(part.overflowed for part in parts)
    checksum = checksum_of_pieces(path, nbytes, pieces) if summed else None
    return Finished(written=Written(nbytes, checksum), durable=durable, overflowed=overflowed)
