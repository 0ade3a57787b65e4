"""Going on with what an earlier job has finished: which of its files are still as their writers left them.

Owns the proof of finished files, by size and checksum, on all threads of a process. Writes nothing; a file that cannot
be proved is simply made again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distconv.commit.journal import Finished
from distconv.errors import StoppedError
from distconv.formats.records import OutputFile, Written
from distconv.runtime.durability import synchronise
from distconv.runtime.regular_files import open_descriptor
from distconv.transfer.checksum import checksum_of
from distconv.transfer.means import Means


def proved(
    directory: Path, finished: Mapping[str, Finished], files: Sequence[OutputFile], means: Means
) -> dict[str, Written]:
    """The files, out of a process's share of those that are finished, that are as their writers left them, by path.

    What casts made infinite in them is counted; they are durable afterwards where that is wanted.

    Raises:
        OSError: a file cannot be made durable.
        StoppedError: another process failed.
    """

    def attempt(file: OutputFile) -> bool:
        found = _is_proved(directory / file.path, finished[file.path], means)
        means.counters.add(done=file.nbytes)
        return found

    with ThreadPoolExecutor(means.io.threads, thread_name_prefix="continuing") as pool:
        kept = [file.path for file, found in zip(files, pool.map(attempt, files), strict=True) if found]
    for path in kept:
        for dtype, tensors in finished[path].overflowed.items():
            for tensor, elements in tensors.items():
                means.counters.add_overflow(dtype, tensor, elements)
    written = {path: finished[path].written for path in kept}
    return written if means.io.checksum else {path: Written(each.nbytes, None) for path, each in written.items()}


def _is_proved(path: Path, known: Finished, means: Means) -> bool:
    nbytes, checksum = known.written
    if checksum is None and means.io.checksum:
        return False
    try:
        descriptor = open_descriptor(path)
    except OSError:
        return False
    try:
        if os.fstat(descriptor).st_size != nbytes:
            return False
        if checksum is not None and not _has_checksum(descriptor, known.written, means):
            return False
        if means.io.fsync and not known.durable:
            synchronise([(str(path), descriptor)])
        return True
    finally:
        os.close(descriptor)


def _has_checksum(descriptor: int, written: Written, means: Means) -> bool:
    """Whether an open file has the checksum that it was left with; one that cannot be read has not."""

    def count(nbytes: int) -> None:
        means.counters.add(read=nbytes)
        if means.must_stop():
            raise StoppedError("stopped because another process failed")

    try:
        return checksum_of(descriptor, written.nbytes, count) == written.checksum
    except OSError:
        return False
