"""The options of reading and writing by a process. Owns their record, and what they leave to the number of cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distconv.fields import Record, option
from distconv.kinds import Integer, Switch, Truth
from distconv.runtime.lanes import Lanes, lanes

ALWAYS, NEVER, AUTO = "true", "false", "auto"

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
        unset="three for each core that a process has, and while cores are idle more, up to 12 for each, at most 24",
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
    shared_files: str = option(
        Switch(
            {
                AUTO: "on file systems that keep writers apart: ext4, xfs, btrfs, zfs, tmpfs, Lustre, GPFS, BeeGFS; "
                "not on others, such as NFS",
                ALWAYS: "",
                NEVER: "",
            }
        ),
        AUTO,
        "let several processes write one file of an `hf` result, where it has fewer files than there are processes",
    )

    def lanes(self, cores: int) -> Lanes:
        """The threads, and the sizes of their buffers, of a process that has so many cores."""
        return lanes(self.threads, self.buffer_mib, cores)
