"""How many requests of a process are under way at a time, and how large they are.

Owns the defaults of `io.threads` and `io.buffer_mib`: threads wait for file systems rather than compute, so there are
several for each core, and all their buffers together have a fixed size. Starts no thread and allocates nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MIB = 1024 * 1024
# Of the buffers of a process together, by default; and of each of them, whatever the number of threads.
_TOGETHER = 48 * _MIB
_LARGEST_BUFFER, _SMALLEST_BUFFER = 8 * _MIB, _MIB
# A file system far away takes some ms for a request, in which a core moves as much as a few threads have in hand.
_THREADS_PER_CORE, _MOST_THREADS = 12, 24
# More would only take the caches of cores from each other, where nothing waits.
_AT_FIRST_PER_CORE = 3
# Of a control group: quota and period, in microseconds.
_QUOTA = "cpu.max"
_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The threads of a process that read and write, and the size in bytes of each of the two buffers of a thread.

    `large_bytes`: that of the two buffers for what is read of many places, or again and again, for each that is filled.
    `threads_at_first`: the threads that there are until the `cores` of the process are seen to be idle.
    """

    threads: int
    buffer_bytes: int
    large_bytes: int
    threads_at_first: int
    cores: int

    @property
    def nbytes(self) -> int:
        """Size in bytes of all buffers together."""
        return 2 * max(self.threads * self.buffer_bytes, self.large_bytes)


def lanes(threads: int | None, buffer_mib: int | None, cores: int) -> Lanes:
    """The lanes of a process with so many cores; what is given counts."""
    most = min(_THREADS_PER_CORE * cores, _MOST_THREADS) if threads is None else threads
    at_first = min(_AT_FIRST_PER_CORE * cores, most) if threads is None else threads
    each, large = min(max(_TOGETHER // (2 * most), _SMALLEST_BUFFER), _LARGEST_BUFFER), _LARGEST_BUFFER
    if buffer_mib is not None:
        each = large = buffer_mib * _MIB
    return Lanes(threads=most, buffer_bytes=each, large_bytes=large, threads_at_first=at_first, cores=cores)


def cores_of(here: int) -> int:
    """The cores that each of the `here` processes of a job on this host can have."""
    return max(min(len(os.sched_getaffinity(0)), _allowed()) // here, 1)


def _allowed() -> int:
    """The cores that the control group of this process may use, and those above it; very many without a limit."""
    try:
        (name,) = (line[3:] for line in _OWN_GROUP.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, ValueError):
        name = "/"
    group = _GROUPS / name.strip("/")
    return min(_limit(each / _QUOTA) for each in (group, *group.parents) if each.is_relative_to(_GROUPS))


def _limit(path: Path) -> int:
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return max(int(quota) // int(period), 1)
    except (OSError, ValueError, ZeroDivisionError):
        # There is none: "max", or not a kernel that has such groups.
        return 2**31
