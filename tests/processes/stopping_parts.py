"""`python -m distconv` that comes to an end when it has written its parts of files: `stopping_parts.py JSON OPTIONS…`.

JSON has `rank` (whose end it is), and `signal` (a number, which it sends to itself) or `error` (a number, with which
the system refuses what it does next). It has told nobody of its parts by then.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from distconv import writing
from distconv.cli.entry import main
from distconv.runtime.launch import launch
from distconv.transfer.parts import WrittenPart, write_parts


def run() -> int:
    how = json.loads(sys.argv.pop(1))

    def written(*arguments: Any) -> dict[str, WrittenPart]:
        told = write_parts(*arguments)
        assert told, "nothing is shared"
        if "signal" in how:
            os.kill(os.getpid(), how["signal"])
        raise OSError(how["error"], os.strerror(how["error"]), str(arguments[2]))

    if launch(os.environ).rank == how["rank"]:
        writing.write_parts = written
    return main()


if __name__ == "__main__":
    sys.exit(run())
