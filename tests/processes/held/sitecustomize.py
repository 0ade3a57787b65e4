"""Let a process wait when it opens a file named `shard`, for as long as a pipe `held` lies beside it; or be slow.

A file `waits` beside the pipe says that one does.

On the path of modules of processes that tests start (`surroundings.py`): the file itself cannot be the pipe, as
conversions refuse to read one.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any


def _wait(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    directory, name = os.path.split(os.path.realpath(os.fsdecode(arguments[0])))
    pipe = os.path.join(directory, "held")
    if name == "shard" and os.path.exists(pipe):
        os.close(os.open(os.path.join(directory, "waits"), os.O_WRONLY | os.O_CREAT))
        os.close(os.open(pipe, os.O_RDONLY))


def _slow(call: Callable[..., Any], seconds: float, quick: int) -> Callable[..., Any]:
    """The call, slow after the first ones, which are `quick`."""

    def slow(*arguments: Any) -> Any:
        nonlocal quick
        quick -= 1
        if quick < 0:
            time.sleep(seconds)
        return call(*arguments)

    return slow


sys.addaudithook(_wait)
if os.environ.get("DISTCONV_TEST_SLOW"):
    for name in os.environ["DISTCONV_TEST_CALLS"].split():
        quick = int(os.environ.get("DISTCONV_TEST_QUICK", "0"))
        setattr(os, name, _slow(getattr(os, name), float(os.environ["DISTCONV_TEST_SLOW"]), quick))
