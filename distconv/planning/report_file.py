"""The files that get the report of a job, as JSON and as a page: where they may be, and writing them.

Owns the protection of files that are there already. Of the content of a report it knows only how one begins.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from distconv.errors import InputError
from distconv.page.page import BEGINNING, page_of
from distconv.runtime.containment import is_inside

_BEGINNING_BYTES = 64


class _FileOfJob:
    """The file that an option names, or with `None` none: then nothing is checked or written.

    `key`: the option; `words`: what the file is; `beginning`: how such a file begins, by which an older one is known.
    """

    key: ClassVar[str]
    words: ClassVar[str]
    beginning: ClassVar[re.Pattern[bytes]]

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def check(self) -> None:
        """Check, before a job begins, that the file can be written, over nothing but an older one of its kind.

        Raises:
            InputError: the file cannot be written, or is there and something else.
        """
        path = self._path
        if path is None:
            return
        writable = os.access(path if os.path.lexists(path) else path.parent, os.W_OK)
        if not writable or os.path.isdir(path):
            raise InputError(
                f"{self.key}={path}: cannot be written there; give the name of a file in an existing directory"
            )
        if path.is_file() and not self._may_be_replaced(path):
            raise InputError(
                f"{self.key}={path}: is there already, and no {self.words} of an earlier job; choose another name"
            )

    def check_place(self, directories: Mapping[str, Path], tracker: Path | None = None) -> None:
        """Check, before anything is written, that the file becomes no part of a source or result, by whatever path.

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
                raise InputError(f"{self.key}={path}: is inside {key}={directory}; choose a place outside of it")
        if tracker is not None and is_inside(path, tracker):
            raise InputError(
                f"{self.key}={path}: has the name of the file that points to the iteration; choose another name"
            )

    def write(self, report: Mapping[str, Any]) -> None:
        """Write a report.

        Raises:
            InputError: the file cannot be written.
        """
        if self._path is None:
            return
        try:
            self._path.write_text(self.text(report), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{self.key}={self._path}: cannot be written: {error.strerror}") from None

    def text(self, report: Mapping[str, Any]) -> str:
        """The content of the file for a report."""
        raise NotImplementedError

    def _may_be_replaced(self, path: Path) -> bool:
        """Whether a file is of this kind, or empty; of a large one of another kind little is read."""
        try:
            with path.open("rb") as stream:
                found = stream.read(_BEGINNING_BYTES)
        except OSError:
            return False
        return not found or self.beginning.match(found) is not None


class ReportFile(_FileOfJob):
    """The file that `report` names: a report, which begins with its action, as JSON."""

    key, words, beginning = "report", "report", re.compile(rb'\{\s*"action": "')

    def text(self, report: Mapping[str, Any]) -> str:
        """The report as JSON."""
        return json.dumps(report, indent=2) + "\n"


class PageFile(_FileOfJob):
    """The file that `plan_html` names: the report of a plan as a page for a browser."""

    key, words, beginning = "plan_html", "page", re.compile(re.escape(BEGINNING.encode()))

    def text(self, report: Mapping[str, Any]) -> str:
        """The page of a report with planned processes."""
        return page_of(report)


class ReportFiles:
    """Both files of a job, by what `report` and `plan_html` name."""

    def __init__(self, report: Path | None, page: Path | None) -> None:
        self._report, self._page = ReportFile(report), PageFile(page)
        self._paths = report, page
        self._foreseen: Sequence[Mapping[str, Any]] = ()

    def check(self) -> None:
        """Check both, as that of one, and that they are two, by whatever paths.

        Raises:
            InputError: as that of one, or one file is named twice.
        """
        self._report.check()
        self._page.check()
        report, page = self._paths
        if report is not None and page is not None and is_inside(page, report):
            raise InputError(f"plan_html={page}: is the file of report={report}, too; give each its own")

    def check_place(self, directories: Mapping[str, Path], tracker: Path | None = None) -> None:
        """Check the places of both; raises as that of one."""
        self._report.check_place(directories, tracker)
        self._page.check_place(directories, tracker)

    def foresee(self, processes: Sequence[Mapping[str, Any]]) -> None:
        """Remember the processes of a conversion as they are planned: its page says that, and the time it took."""
        self._foreseen = processes

    def write(self, report: Mapping[str, Any]) -> None:
        """Write both; raises as that of one."""
        self._report.write(report)
        processes = report["processes"]
        if self._foreseen:
            took = zip(self._foreseen, processes, strict=True)
            processes = [{**each, "rank": done["rank"], "seconds": done["seconds"]} for each, done in took]
        self._page.write({**report, "processes": processes})
