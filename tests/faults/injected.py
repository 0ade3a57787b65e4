"""`python -m distconv`, a call of which fails on one rank: `injected.py JSON OPTIONS…`; JSON is of a `Fault`.

JSON has `rank`, and the `directory` below which calls count, too.
"""

from __future__ import annotations

import json
import os
import sys

from distconv.cli.entry import main
from tests.faults.calls import Calls, Fault
from tests.processes.surroundings import RANK_NAMES


def run() -> int:
    how = json.loads(sys.argv.pop(1))
    rank, directory = how.pop("rank"), how.pop("directory")
    if str(rank) in (os.environ.get(name) for name in RANK_NAMES):
        Calls(directory, Fault(**how)).replace()
    return main()


if __name__ == "__main__":
    sys.exit(run())
