"""The buffers of a process's threads: one allocation, of which each piece of work has a part while it is done.

Owns who has which part. Knows nothing of what is in them.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distconv.errors import JobError
from distconv.runtime.lanes import Lanes

# Elements are read to where elements of any size may begin.
ALIGNMENT = 64
# Of each part, the room that alignment may take.
_SPARE = mmap.PAGESIZE


class Buffers:
    """Two buffers for each thread, allocated when first used; safe to use from several threads.

    Who needs larger ones has those of several threads at once. Parts are given in the order in which they are asked
    for, so that no one waits for ever for larger ones.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._each = 2 * lanes.buffer_bytes + _SPARE
        self._count = max(lanes.threads, -(-(2 * lanes.large_bytes + ALIGNMENT) // self._each))
        self._free = [True] * self._count
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._memory: memoryview | None = None

    @contextmanager
    def taken(self, buffer_bytes: int) -> Iterator[memoryview]:
        """Memory for two buffers of this size, which is another's again after the context.

        Raises:
            JobError: there is not that much memory.
        """
        nbytes = 2 * buffer_bytes + ALIGNMENT
        parts, ticket = -(-nbytes // self._each), object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._room(parts) is not None)
                if self._memory is None:
                    self._memory = _allocated(self._count * self._each, self.lanes.nbytes)
                first = self._room(parts)
                assert first is not None
                self._free[first : first + parts] = [False] * parts
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
            memory = self._memory[first * self._each :][:nbytes]
        try:
            yield memory
        finally:
            with self._changed:
                self._free[first : first + parts] = [True] * parts
                self._changed.notify_all()

    def _room(self, parts: int) -> int | None:
        """The first of so many adjacent parts that are free."""
        starts = range(self._count - parts + 1)
        return next((start for start in starts if all(self._free[start : start + parts])), None)


def _allocated(nbytes: int, wanted: int) -> memoryview:
    """Memory of huge pages where there are some: a transposition touches thousands of rows at a time.

    Raises:
        JobError: there is not that much memory.
    """
    try:
        memory = mmap.mmap(-1, nbytes)
    except OSError:
        raise JobError(f"no memory for buffers of {wanted:,} bytes; lower io.threads or io.buffer_mib") from None
    # Not every system has them, nor every kernel.
    with suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
