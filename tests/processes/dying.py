"""`python -m distconv` that gets a signal, or an error, in its commit: `dying.py JSON OPTIONS…`.

JSON has `exchange` (whether two names can be exchanged), `after` (how many renames of the commit have been made by
then), and `signal` (a number) or `error` (a number; every later rename fails in the same way).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distconv.cli.entry import main
from distconv.commit import swap


class Renames:
    """Counts the renames of a commit, and does what is to be done after one."""

    def __init__(self, how: dict[str, Any]) -> None:
        self._how = how
        self._made = 0

    def counted(self, call: Callable[..., Any], *names: Path) -> Any:
        if Path(names[1]).name == swap.JOURNAL:
            return call(*names)
        if "error" in self._how and self._made == self._how["after"]:
            raise OSError(self._how["error"], os.strerror(self._how["error"]), str(names[0]))
        done = call(*names)
        self._made += 1
        if "signal" in self._how and self._made == self._how["after"]:
            os.kill(os.getpid(), self._how["signal"])
        return done


def run() -> int:
    how = json.loads(sys.argv.pop(1))
    renames, rename, exchange = Renames(how), os.rename, swap.exchange
    os.rename = lambda old, new: renames.counted(rename, old, new)
    swap.exchange = lambda one, other: how["exchange"] and renames.counted(exchange, one, other)
    return main()


if __name__ == "__main__":
    sys.exit(run())
