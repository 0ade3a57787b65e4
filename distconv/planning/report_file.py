"""The file that gets the JSON report: where it may be, and writing it.

Owns the protection of files that are there already. Of the content of a report it knows only how one begins.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.errors import InputError
from distconv.runtime.containment import is_inside

_BEGINNING = re.compile(rb'\{\s*"action": "')
_BEGINNING_BYTES = 64


class ReportFile:
    """The file that `report` names, or with `None` none: then nothing is checked or written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def check(self) -> None:
        """Check, before a job begins, that the report can be written, over nothing but an older report.

        Raises:
            InputError: the file cannot be written, or is there and no report.
        """
        path = self._path
        if path is None:
            return
        writable = os.access(path if os.path.lexists(path) else path.parent, os.W_OK)
        if not writable or os.path.isdir(path):
            raise InputError(
                f"report={path}: cannot be written there; give the name of a file in an existing directory"
            )
        if path.is_file() and not _may_be_replaced(path):
            raise InputError(f"report={path}: is there already, and no report of an earlier job; choose another name")

    def check_place(self, directories: Mapping[str, Path], tracker: Path | None = None) -> None:
        """Check, before anything is written, that the report becomes no part of a source or result, by whatever path.

        `directories` are sources and the result, by the option that names them; `tracker` is the file that points to
        the iteration of the result.

        Raises:
            InputError: it is inside one of the directories, or is the tracker.
        """
        path = self._path
        if path is None:
            return
        for key, directory in directories.items():
            if is_inside(path, directory):
                raise InputError(f"report={path}: is inside {key}={directory}; choose a place outside of it")
        if tracker is not None and is_inside(path, tracker):
            raise InputError(
                f"report={path}: has the name of the file that points to the iteration; choose another name"
            )

    def write(self, report: Mapping[str, Any]) -> None:
        """Write a report, which begins with its action, as JSON.

        Raises:
            InputError: the file cannot be written.
        """
        if self._path is None:
            return
        try:
            self._path.write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"report={self._path}: cannot be written: {error.strerror}") from None


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is a report, or empty; of a large one of another kind little is read."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(_BEGINNING_BYTES)
    except OSError:
        return False
    return not beginning or _BEGINNING.match(beginning) is not None
