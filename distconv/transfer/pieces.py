"""The size of the pieces in which a long run of bytes is copied.

Owns the choice between requests whose bytes stay in a core's cache and those that a slow file system answers sooner.
Moves no bytes.
"""

from __future__ import annotations

import threading
from time import monotonic, thread_time

# A core's cache still holds so many bytes when they are summed and written.
_CACHED = 512 * 1024
_LARGEST = 8 * 1024 * 1024
# Seconds without a core after which a read waited: for a file system if the read before it did, too; else for a core.
_WAITED = 0.001


class Pieces(threading.local):
    """The size in bytes of the next piece, `nbytes`: small, and larger and larger while reads wait; each thread's own.

    Writes say nothing, since the threads that write one file wait for each other.
    """

    def __init__(self) -> None:
        self.nbytes = _CACHED
        self._waits = 0

    def learn(self, seconds: float) -> None:
        """Take into account for how long the thread had no core while it read a piece."""
        self._waits = self._waits + 1 if seconds > _WAITED else 0
        self.nbytes = min(2 * self.nbytes, _LARGEST) if self._waits > 1 else max(self.nbytes // 2, _CACHED)


def idle_seconds() -> float:
    """How long this thread has had no core, since some moment."""
    return monotonic() - thread_time()
