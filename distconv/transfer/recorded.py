"""Proving an existing result by its record: sizes and checksums of its files, and what the record says of its making.

Owns the comparison and its words. Reads no file that is not inside of the result. Writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distconv.errors import InputError, StoppedError, named, printable, system_problem
from distconv.formats.provenance import PROVENANCE_NAME, Provenance, newer_note, read_provenance
from distconv.formats.recorded_files import check_inside, wrong_size
from distconv.formats.records import OutputFile, Written, checksum_text
from distconv.runtime.hand_out import on_threads
from distconv.runtime.regular_files import open_descriptor
from distconv.transfer.checksum import checksum_of
from distconv.transfer.means import Means
from distconv.transfer.verify import Compared

# What a result is, which earlier records say in part; and what it was made by, which may be said in other words.
_OF_FIRST_RECORDS = ("model", "reference")
_OF_RESULT = (*_OF_FIRST_RECORDS, "format", "dialect", "layout")
_OF_MAKING = ("version", "source", "options")


def as_outputs(files: Mapping[str, Written]) -> list[OutputFile]:
    """Recorded files as those that are divided over processes."""
    return [
        OutputFile(path=path, nbytes=each.nbytes, order=(number,), batch=number)
        for number, (path, each) in enumerate(files.items())
    ]


def compare_recorded(
    directory: Path, files: Mapping[str, Written], share: Sequence[OutputFile], means: Means
) -> list[str]:
    """Compare size and checksum of this process's share of the recorded files; the differences, in words.

    A file that is missing or cannot be read is a difference.

    Raises:
        StoppedError: another process failed.
    """

    def compared(file: OutputFile) -> list[str]:
        return compare_written(directory / file.path, files[file.path], means)

    return [line for lines in on_threads(compared, share, means.threads) for line in lines]


def compare_written(path: Path, recorded: Written, means: Means) -> list[str]:
    """Compare a file with what its writer left, which is then done; the difference, in words.

    Raises:
        StoppedError: another process failed.
    """
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        means.counters.add(read=nbytes, done=nbytes)
        if means.must_stop():
            raise StoppedError("stopped because another process failed")

    try:
        descriptor = open_descriptor(path)
        try:
            size = os.fstat(descriptor).st_size
            if (wrong := wrong_size(path, size, recorded)) is not None:
                return [wrong]
            if recorded.checksum is None:
                return []
            found = checksum_of(descriptor, size, count)
        finally:
            os.close(descriptor)
    except OSError as error:
        return [system_problem(f"{path}: cannot be compared with its record", error)]
    finally:
        # What cannot be compared counts as done.
        means.counters.add(done=recorded.nbytes - done)
    if found == recorded.checksum:
        return []
    return [f"{path}: has the checksum {checksum_text(found)}, its record says {checksum_text(recorded.checksum)}"]


def compare_record(directory: Path, expected: Provenance) -> tuple[Compared, Mapping[str, Written]]:
    """Compare the record of a result with that which would be written, of files only which there are.

    Also the files that it names, for `compare_recorded`. Earlier records say less; what they say is compared.
    """
    path = directory / PROVENANCE_NAME
    if not path.exists():
        return Compared(differences=[f"{path}: is missing; if it was left out on purpose, give provenance=false"]), {}
    try:
        found = read_provenance(directory)
        check_inside(directory, found.files)
    except InputError as error:
        return Compared(differences=error.problems), {}
    compared = Compared(notes=list(newer_note(found, directory)))
    if found.newer is not None:
        return compared, {}
    compared.differences.extend(_differing(path, found, expected))
    if found.version is None:
        compared.notes.append(f"{path}: was written by an earlier version, and names no files")
        return compared, {}
    for one, other, words in (
        (found, expected, "names files that are not of the result"),
        (expected, found, "does not name files of the result"),
    ):
        if more := [name for name in one.files if name not in other.files]:
            compared.differences.append(f"{path}: {words}: {named(more)}")
    says = [f"{key} {_value(found, key)}" for key in _OF_MAKING if _value(found, key) != _value(expected, key)]
    if says:
        compared.notes.append(f"{path}: says that it was made otherwise, with {'; '.join(says)}")
    return compared, found.files


def _differing(path: Path, found: Provenance, expected: Provenance) -> Iterator[str]:
    for key in _OF_FIRST_RECORDS if found.version is None else _OF_RESULT:
        if (says := _value(found, key)) != (wanted := _value(expected, key)):
            yield f"{path}: says {key} {says}, expected {wanted}"
    one, other = found.scaling, expected.scaling
    if one != other and (one is None or other is None or not one.agrees_with(other)):
        yield f"{path}: says another scaling of adapters than they have"


def _value(record: Provenance, key: str) -> str:
    value: Any = getattr(record, key)
    if isinstance(value, Mapping):
        return printable(" ".join(f"{name}={value[name]}" for name in sorted(value))) or "none"
    return "none" if value is None else printable(value)
