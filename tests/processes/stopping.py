"""`python -m distconv` that comes to an end when it has finished so many files: `stopping.py JSON OPTIONS…`.

JSON has `rank` (whose end it is), `after` (how many of its files are finished by then), and `signal` (a number, which
it sends to itself) or `error` (a number, with which the system refuses what it does next).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from distconv.cli.entry import main
from distconv.commit.journal import Finished, Journal
from distconv.runtime.launch import launch


def run() -> int:
    how = json.loads(sys.argv.pop(1))
    if launch(os.environ).rank == how["rank"]:
        _end(how)
    return main()


def _end(how: Mapping[str, Any]) -> None:
    add, count = Journal.add, 0

    def counted(journal: Journal, finished: Mapping[str, Finished]) -> None:
        nonlocal count
        add(journal, finished)
        count += len(finished)
        if count >= how["after"]:
            if "signal" in how:
                os.kill(os.getpid(), how["signal"])
            else:
                raise OSError(how["error"], os.strerror(how["error"]))

    Journal.add = counted


if __name__ == "__main__":
    sys.exit(run())
