"""`python -m distconv`, each call of which on files below a directory takes longer: `delayed.py SECONDS DIRECTORY …`.

As on a file system far away, whose every request costs a round trip, however many are on their way at a time. With 0
seconds the calls are counted alike, so that two runs differ in the delay alone. The last line of the output is JSON:
the number of calls by kind.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from distconv.cli.entry import main
from tests.faults.calls import Calls


class DelayedCalls(Calls):
    """The calls of this process on files below a directory, each of which takes `seconds` longer."""

    def __init__(self, directory: str, seconds: float) -> None:
        super().__init__(directory)
        self._seconds = seconds

    def check(self, kind: str, file: Any, within: Any = None) -> bool:
        """Count a call, and wait."""
        if self._seconds and self._path(file, within) is not None:
            time.sleep(self._seconds)
        return super().check(kind, file, within)


def run() -> int:
    seconds, directory = float(sys.argv.pop(1)), sys.argv.pop(1)
    calls = DelayedCalls(directory, seconds)
    calls.replace()
    status = main()
    sys.stdout.write(json.dumps(calls.counts) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(run())
