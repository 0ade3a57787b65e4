"""What torchrun is told of a failure: its agent reads a file of every process that ended with one.

Its report is printed after everything that a process can print. It ends with the failure that was first by the time in
these files, so that is the one that says why. Owns the form of the file; imports nothing of torch.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping

_NAME = "TORCHELASTIC_ERROR_FILE"
_TOLD = "distconv: rank 0 says why"
# Processes may fail so many seconds apart, and the one that says why must count as the first.
_LATER_SECONDS = 3600


def tell_agent(cause: str | None, environment: Mapping[str, str]) -> None:
    """Leave why this process fails for the agent of torchrun, if one started it; `None`: another process says why.

    Where the file cannot be written, the agent's report has a failure without a reason.
    """
    path = environment.get(_NAME)
    if not path:
        return
    text, moment = (cause, int(time.time())) if cause is not None else (_TOLD, int(time.time()) + _LATER_SECONDS)
    # `py_callstack` is what the report shows, also where it is none.
    message = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(moment)}}
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
        json.dump({"message": message}, file)
