"""Going on with what an earlier job has finished: which of its files are still as their writers left them.

Owns the proof of finished files, by size and checksum, on all threads of a process. Writes nothing; a file that cannot
be proved is simply made again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from distconv.commit.journal import Finished
from distconv.formats.records import OutputFile, Written
from distconv.runtime.durability import synchronise
from distconv.runtime.hand_out import on_threads
from distconv.transfer.files import OpenFiles
from distconv.transfer.means import Means
from distconv.transfer.recorded import compare_written


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
        return _is_proved(directory / file.path, finished[file.path], means)

    outcomes = on_threads(attempt, files, means.threads)
    kept = [file.path for file, found in zip(files, outcomes, strict=True) if found]
    for path in kept:
        for dtype, tensors in finished[path].overflowed.items():
            for tensor, elements in tensors.items():
                means.counters.add_overflow(dtype, tensor, elements)
    written = {path: finished[path].written for path in kept}
    return written if means.io.checksum else {path: Written(each.nbytes, None) for path, each in written.items()}


def _is_proved(path: Path, known: Finished, means: Means) -> bool:
    if known.written.checksum is None and means.io.checksum:
        means.counters.add(done=known.written.nbytes)
        return False
    if compare_written(path, known.written, means):
        return False
    if means.io.fsync and not known.durable:
        with OpenFiles(os.O_RDONLY) as files:
            files.get(str(path))
            synchronise(files.items())
    return True
