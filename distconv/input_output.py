"""The options of reading and writing by a process. Owns their record, and what they leave to the number of cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distconv.fields import Record, option
from distconv.kinds import Integer, Truth
from distconv.runtime.lanes import Lanes, lanes

# More than any number of threads; rejects typing errors.
_SIZE = Integer(2**24)


@dataclass(frozen=True, kw_only=True)
class InputOutput(Record):
    """The options of reading and writing by a process."""

    GROUP: ClassVar[str] = "io"

    fsync: bool = option(Truth(), True, "make everything durable before it gets its final name")
    threads: int | None = option(
        _SIZE,
        None,
        "I/O threads of each process, each of which has a request of its own under way",
        unset="six for each core that a process has, at most 16",
    )
    buffer_mib: int | None = option(
        _SIZE,
        None,
        "size of each of the two buffers of a thread, in MiB",
        unset="so that those of all threads take 48 together, at most 8; 8 for what is read of many places",
    )
    checksum: bool = option(
        Truth(),
        True,
        "compute the checksums of the files of a result while they are written; without them, what is copied as it is "
        "stays in the kernel",
    )

    def lanes(self, cores: int) -> Lanes:
        """The threads, and the sizes of their buffers, of a process that has so many cores."""
        return lanes(self.threads, self.buffer_mib, cores)
