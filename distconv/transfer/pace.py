"""The pace of a crew: how many threads work at a time.

Owns the choice between few threads, which share the cores' caches with few others, and many, which keep requests under
way where a file system is far away. Starts no thread.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, process_time

from distconv.runtime.lanes import Lanes

# Seconds over which is seen how busy the cores are.
_WINDOW = 0.02
# The part of the cores' time that is used where threads wait for cores rather than for a file system.
_BUSY = 0.6


class Pace:
    """The number of `threads` that work: few at first, and more while the cores of the process are idle, never fewer.

    Not safe to use from several threads.
    """

    def __init__(
        self, lanes: Lanes, now: Callable[[], float] = monotonic, used: Callable[[], float] = process_time
    ) -> None:
        self.threads = lanes.threads_at_first
        self._lanes = lanes
        self._now, self._used = now, used
        self._began, self._used_before = now(), used()

    def learn(self, *, importing: bool) -> None:
        """Take into account how busy the cores have been; not while a module is imported, which one thread does."""
        if self.threads == self._lanes.threads:
            return
        now = self._now()
        if now - self._began < _WINDOW:
            return
        used = self._used()
        if not importing and used - self._used_before < _BUSY * self._lanes.cores * (now - self._began):
            self.threads = min(self.threads + max(self.threads // 2, 1), self._lanes.threads)
        self._began, self._used_before = now, used
