"""Let a process wait when it opens a file named `shard`, for as long as a pipe `held` lies beside it.

On the path of modules of processes that tests start (`surroundings.py`): the file itself cannot be the pipe, as
conversions refuse to read one.
"""

import os
import sys


def _wait(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    directory, name = os.path.split(os.path.realpath(os.fsdecode(arguments[0])))
    pipe = os.path.join(directory, "held")
    if name == "shard" and os.path.exists(pipe):
        os.close(os.open(pipe, os.O_RDONLY))


sys.addaudithook(_wait)
