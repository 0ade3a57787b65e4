"""What the record of a source suggests for a job: its layout and its dialect.

Owns which of it a job takes over: where the user gave nothing, with the checks that a user's word gets. A contradiction
to what the files show is an error. Reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from distconv.errors import InputError
from distconv.formats.base import Format
from distconv.formats.provenance import PROVENANCE_NAME, Provenance
from distconv.formats.registry import Options
from distconv.layout.request import SourceLayout
from distconv.models.rules import TEXT

T = TypeVar("T")
# The option that decides instead of a record, in what is said of a source.
_DECIDES = re.compile(r"source_(?:layout\.[\w.]+|dialect)(?==)")


@dataclass(frozen=True, kw_only=True)
class Suggested:
    """What the record in the file `where` says of a source: keys and values of `source_layout`, and a dialect."""

    where: str = ""
    layout: Mapping[str, Any] = field(default_factory=dict)
    dialect: str | None = None

    @staticmethod
    def by(record: Provenance, directory: Path, form: Format[Options], dialects: Collection[str]) -> Suggested:
        """What a source in a format takes over from the record in its directory; `dialects`: those that are known."""
        takes = form.takes.source
        layout = dict(record.layout or {}) if "source_layout" in takes else {}
        dialect = record.dialect if "source_dialect" in takes and record.dialect in dialects else None
        where = str(directory / PROVENANCE_NAME) if layout or dialect else ""
        return Suggested(where=where, layout=layout, dialect=dialect)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Suggested(**data)` reads it."""
        return asdict(self)

    def completed(self, options: Options) -> Options:
        """The options, with what is suggested where the user gave nothing."""
        given = options.source_layout
        told = SourceLayout.from_content(self.layout)
        known = {key: getattr(given, key) for key in given.given()}
        missing = {key: getattr(told, key) for key in told.given() if key not in known}
        by_name: dict[str, Any] = {
            key: {**getattr(told, key), **known[key]} for key in ("stages", "modality_tp") if key in known
        }
        layout = replace(given, **missing, **by_name)
        if self.layout and given.tp is None:
            # A modality that a layout does not name is cut as the text is; in files it may be otherwise.
            encoders = {each: told.tp for each in told.stages if each != TEXT and told.tp is not None}
            layout = replace(layout, modality_tp={**encoders, **layout.modality_tp})
        return replace(options, source_layout=layout, source_dialect=options.source_dialect or self.dialect)

    def heeded(self, options: Options, make: Callable[[Options], T]) -> T:
        """What `make` makes with the completed options.

        Raises:
            InputError: the record contradicts what the files show; or what is wrong in any case.
        """
        completed = self.completed(options)
        if completed == options:
            return make(options)
        try:
            return make(completed)
        except InputError as error:
            told = error.problems
        alone: list[str] = []
        try:
            make(options)
        except InputError as error:
            alone = error.problems
        raise InputError([*alone, *(self._contradicted(each) for each in told if each not in alone)])

    def _contradicted(self, problem: str) -> str:
        found = _DECIDES.search(problem)
        key = found[0] if found else "source_layout.*" if self.layout else "source_dialect"
        return (
            f"{self.where}: what it says of the source is not what the files show: {problem}; give {key} as the files "
            "have it, or remove this record"
        )
