"""Something that is done every so many seconds beside everything else, such as drawing a line.

Owns its thread, which ends with the program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Regularly:
    """Calls a function every `seconds`, from a thread of its own, until it is stopped."""

    def __init__(self, function: Callable[[], None], seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="regularly", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; the function is not called any more after that."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._function()
