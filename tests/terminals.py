"""A terminal for tests: a program on a pseudo-terminal of a given width, what is typed, and what has been shown."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

SECONDS = 60


class Terminal:
    """A running program on a terminal; as a context manager it ends it."""

    def __init__(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str], *, columns: int = 120
    ) -> None:
        self._shown = b""
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            os.chdir(directory)
            os.execvpe(command[0], command, {**environment})  # noqa: S606 - the arguments come from a test
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        os.close(self._master)

    def type(self, text: str) -> None:
        """Type keys."""
        os.write(self._master, text.encode())

    def until(self, text: str, seconds: float = SECONDS) -> str:
        """All that has been shown, once `text` is among it."""
        end = time.monotonic() + seconds
        while text not in self.shown() and time.monotonic() < end:
            if not self._read(end - time.monotonic()):
                break
        assert text in self.shown(), self.shown()
        return self.shown()

    def end(self) -> tuple[int, str]:
        """The exit status of the program, and all that it has shown."""
        end = time.monotonic() + SECONDS
        while self._read(end - time.monotonic()):
            pass
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status), self.shown()

    def shown(self) -> str:
        """All that has been shown so far."""
        return self._shown.decode(errors="replace")

    def _read(self, seconds: float) -> bool:
        """Read once; whether there was something."""
        ready, _, _ = select.select([self._master], [], [], max(seconds, 0))
        try:
            found = os.read(self._master, 65536) if ready else b""
        except OSError:
            found = b""
        self._shown += found
        return bool(found)
