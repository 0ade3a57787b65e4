"""The buffers of a process's threads: one allocation, of which each piece of work has a part while it is done.

Owns who has which part. Knows nothing of what is in them.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import or_

from distconv.errors import JobError
from distconv.runtime.lanes import Lanes

# Elements are read to where elements of any size may begin.
ALIGNMENT = 64
# Of each unit, the room that alignment may take.
_SPARE = mmap.PAGESIZE


class _Part:
    """So many adjacent units, which are `given` from `start` on; until then some may be claimed, from `claim` on."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.start = self.claim = -1
        self.given = threading.Event()


class Buffers:
    """Two buffers for each thread, allocated when first used; safe to use from several threads.

    They are the units of which parts are made. Who must wait for a part claims adjacent units, which nobody else gets
    before, and has others if those become free first; who asks later has any others meanwhile.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._each = lanes.buffer_bytes + _SPARE
        count = max(2 * lanes.threads, self._units(2 * lanes.large_bytes))
        # Whether somebody has a unit, or is to have it next: 1 or 0.
        self._owned, self._claimed = bytearray(count), bytearray(count)
        self._waiting: list[_Part] = []
        self._lock = threading.Lock()
        self._memory: memoryview | None = None

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[memoryview]:
        """Memory of this size in bytes, and room to align what is in it, which is another's again after the context.

        Raises:
            JobError: there is not that much memory.
        """
        part = _Part(self._units(nbytes))
        try:
            with self._lock:
                if self._memory is None:
                    self._memory = _allocated(len(self._owned) * self._each, self.lanes.nbytes)
                self._waiting.append(part)
                self._hand_out()
            part.given.wait()
            yield self._memory[part.start * self._each :][: nbytes + ALIGNMENT]
        finally:
            with self._lock:
                self._release(part)

    def _units(self, nbytes: int) -> int:
        """The units that hold so many bytes, wherever they begin."""
        return -(-(nbytes + ALIGNMENT) // self._each)

    def _hand_out(self) -> None:
        """Give units to those who wait, and let them claim others in the order in which they asked."""
        may_claim = True
        for part in tuple(self._waiting):
            self._give(part)
            if part.given.is_set():
                continue
            if may_claim and part.claim < 0:
                self._let_claim(part)
            # None that asked later claims before, so that what this one needs becomes free of claims.
            may_claim = may_claim and part.claim >= 0

    def _give(self, part: _Part) -> None:
        """Give a part the units that it claims, or others, if they are free."""
        if part.claim >= 0 and not self._owned.count(1, part.claim, part.claim + part.units):
            part.start = part.claim
        else:
            part.start = bytes(map(or_, self._owned, self._claimed)).find(bytes(part.units))
        if part.start >= 0:
            _mark(self._claimed, part.claim, part.units, 0)
            _mark(self._owned, part.start, part.units, 1)
            self._waiting.remove(part)
            part.given.set()

    def _let_claim(self, part: _Part) -> None:
        """Claim units for a part, those of which most are free, unless others claim too many."""
        starts = range(len(self._owned) - part.units + 1)
        unclaimed = [start for start in starts if not self._claimed.count(1, start, start + part.units)]
        if unclaimed:
            part.claim = min(unclaimed, key=lambda start: self._owned.count(1, start, start + part.units))
            _mark(self._claimed, part.claim, part.units, 1)

    def _release(self, part: _Part) -> None:
        """Take everything from a part."""
        if part in self._waiting:
            self._waiting.remove(part)
            _mark(self._claimed, part.claim, part.units, 0)
        _mark(self._owned, part.start, part.units, 0)
        self._hand_out()


def _mark(units: bytearray, start: int, count: int, value: int) -> None:
    """Mark so many units from `start` on, if that is one."""
    if start >= 0:
        units[start : start + count] = bytes([value]) * count


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
