"""The exchange of two names in one system call, where the system has it.

Owns the call. It is the only way to replace a directory such that there is no moment without one of that name.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from distconv.runtime.file_systems import LACKING

_RELATIVE_TO_WORKING_DIRECTORY = -100
_EXCHANGE = 2
# Two renames, which come then, say what else is wrong.
_UNKNOWN = LACKING | {errno.EXDEV}


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names on the same file system; False where the system, or the file system, cannot.

    Raises:
        OSError: it can, and failed; both names are as before.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    here = _RELATIVE_TO_WORKING_DIRECTORY
    if call(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
