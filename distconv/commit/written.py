"""The files of a result as rank 0 sees them before it gives them their name.

Owns the check that they are as their writers left them. Changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from distconv.errors import JobError
from distconv.runtime.hand_out import AT_ONCE, on_threads


def check_written(directory: Path, files: Mapping[str, int]) -> None:
    """Raise `JobError` unless a directory has these files, given as path → size in bytes."""

    def check(path: str) -> None:
        try:
            found = os.stat(directory / path).st_size
        except OSError:
            found = None
        if found != files[path]:
            raise JobError(
                f"{directory / path}: its writer left {files[path]} bytes, the first process finds "
                f"{'no file' if found is None else found}; target must be on a file system that all nodes share"
            )

    on_threads(check, list(files), AT_ONCE)
