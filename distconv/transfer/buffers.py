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

    Who needs larger ones has those of several threads at once: it claims adjacent ones, in the order in which they are
    asked for, which nobody else gets before; who needs small ones takes any others meanwhile.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._each = 2 * lanes.buffer_bytes + _SPARE
        self._count = max(lanes.threads, -(-(2 * lanes.large_bytes + ALIGNMENT) // self._each))
        # Who has, and who is the next to have, a part.
        self._owners: list[object | None] = [None] * self._count
        self._claims: list[object | None] = [None] * self._count
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
            try:
                if parts > 1:
                    self._waiting.append(ticket)
                self._changed.wait_for(lambda: self._has(ticket, parts))
                if self._memory is None:
                    self._memory = _allocated(self._count * self._each, self.lanes.nbytes)
            except BaseException:
                self._release(ticket)
                raise
            memory = self._memory[self._owners.index(ticket) * self._each :][:nbytes]
        try:
            yield memory
        finally:
            with self._changed:
                self._release(ticket)

    def _has(self, ticket: object, parts: int) -> bool:
        """Whether so many adjacent parts are those of a ticket, which takes them if it can."""
        if parts == 1:
            free = (part for part, each in enumerate(self._owners) if each is None and self._claims[part] is None)
            first = next(free, None)
        else:
            first = self._claimed(ticket, parts)
            if first is not None and any(self._owners[first : first + parts]):
                return False
        if first is None:
            return False
        self._owners[first : first + parts] = [ticket] * parts
        if parts > 1:
            self._claims[first : first + parts] = [None] * parts
            # What is behind it may claim some now.
            self._changed.notify_all()
        return True

    def _claimed(self, ticket: object, parts: int) -> int | None:
        """The first of the adjacent parts that a ticket claims; nothing while those before it claim too many."""
        if ticket in self._claims:
            return self._claims.index(ticket)
        if self._waiting[0] is not ticket:
            return None
        starts = range(self._count - parts + 1)
        free = [start for start in starts if not any(self._claims[start : start + parts])]
        if not free:
            return None
        first = min(free, key=lambda start: sum(each is not None for each in self._owners[start : start + parts]))
        self._claims[first : first + parts] = [ticket] * parts
        self._waiting.popleft()
        return first

    def _release(self, ticket: object) -> None:
        """Take everything from a ticket."""
        for found in (self._owners, self._claims):
            found[:] = [None if each is ticket else each for each in found]
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._changed.notify_all()


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
