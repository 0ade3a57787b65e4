"""What a result remembers of its making: `distconv.json` beside its files.

Owns the form of the record, of this version and of earlier ones, and the checks of one that anybody may have written:
it is a suggestion of a stranger. Follows nothing that it names.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from distconv.errors import InputError, printable, raise_if
from distconv.fields import options_of
from distconv.formats.jsonfile import read_object
from distconv.formats.records import Written, checksum_text
from distconv.layout.request import SourceLayout
from distconv.models.scaling import Scaling
from distconv.tensors.stored import SourceFile
from distconv.version import VERSION

PROVENANCE_NAME = "distconv.json"
# The version of records that is written; those of the first one do not name it.
_RECORD = 2
_SCALING = "adapters"
_TEXTS = ("model", "definition", "reference", "format", "dialect")
_CHECKSUM = re.compile("[0-9a-f]{8}")
# No file system has larger files.
_LARGEST_FILE = 2**63 - 1
_MEND = "remove the file, or mend it"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The record of a result; `None`: not known, as are `source`, `options` and `files` if they are empty.

    `model` names its definition, `definition` the file of one that did not come with distconv, `reference` a Hugging
    Face directory by its absolute path. `source`: the directories that were read, with their format and iteration, as
    text. `layout`: how the result is cut, as keys and values of `source_layout`. `options`: those that shape the
    result. `files`: the files of the result by path below it, without that of the record. `version`: of distconv;
    `newer`: that of a record of a later form, of which nothing is read.
    """

    model: str | None = None
    definition: str | None = None
    reference: str | None = None
    scaling: Scaling | None = None
    version: str | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    dialect: str | None = None
    layout: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Written] = field(default_factory=dict)
    newer: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data in the form of this version; a definition of one's own and the scaling only if there are any."""
        return {
            "record": _RECORD,
            "distconv": self.version,
            "source": dict(self.source),
            "model": self.model,
            **({} if self.definition is None else {"definition": self.definition}),
            "reference": self.reference,
            **({} if self.scaling is None else {_SCALING: self.scaling.to_json()}),
            "format": self.format,
            "dialect": self.dialect,
            "layout": self.layout,
            "options": dict(self.options),
            "files": {path: _file_json(self.files[path]) for path in sorted(self.files)},
        }

    @staticmethod
    def parse(content: Mapping[str, Any], where: str) -> Provenance:
        """The record in plain data, of this or an earlier form; an empty one of a later form. `where`: its file.

        Raises:
            InputError: every key that holds what it cannot.
        """
        number = content.get("record", 1)
        if type(number) is not int or number < 1:
            raise InputError(
                f"{where}: record: expected the version of the record, found {reprlib.repr(number)}; {_MEND}"
            )
        if number > _RECORD:
            return Provenance(newer=number)
        raise_if([f"{where}: {problem}; {_MEND}" for problem in _problems(content)])
        scaling = content.get(_SCALING)
        files = content.get("files") or {}
        return Provenance(
            **{key: content.get(key) for key in _TEXTS},
            scaling=None if scaling is None else Scaling.parse(scaling, where),
            version=content.get("distconv"),
            source=content.get("source") or {},
            layout=content.get("layout"),
            options=content.get("options") or {},
            files={path: _written(each) for path, each in files.items()},
        )


def provenance_bytes(record: Provenance) -> bytes:
    """The content of the record's file."""
    return (json.dumps(record.to_json(), indent=2) + "\n").encode()


def read_provenance(directory: Path, seen: list[SourceFile] | None = None) -> Provenance:
    """The record in a directory, an empty one if there is none; the identity of its file is added to `seen`.

    Raises:
        InputError: it is there and damaged.
    """
    path = directory / PROVENANCE_NAME
    if not path.exists():
        return Provenance()
    return Provenance.parse(read_object(path, "what the checkpoint was made from", seen), str(path))


def newer_note(record: Provenance, directory: Path) -> tuple[str, ...]:
    """In words, that the record in a directory is ignored; nothing if it is not."""
    if record.newer is None:
        return ()
    where, number = directory / PROVENANCE_NAME, record.newer
    return (f"{where}: ignored: a record of version {number}; distconv {VERSION} reads those up to {_RECORD}",)


def _file_json(file: Written) -> dict[str, Any]:
    known = {"bytes": file.nbytes}
    return known if file.checksum is None else {**known, "crc32": checksum_text(file.checksum)}


def _written(data: Mapping[str, Any]) -> Written:
    checksum = data.get("crc32")
    return Written(data["bytes"], None if checksum is None else int(checksum, 16))


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the values of a record, in words."""
    for key in (*_TEXTS, "distconv"):
        if not isinstance(content.get(key), str | None):
            yield f"{key}: expected text, found {reprlib.repr(content[key])}"
    for key in ("source", "options", "files", "layout"):
        if not isinstance(content.get(key), Mapping | None):
            yield f"{key}: expected an object, found {reprlib.repr(content[key])}"
    source, files, layout = (content.get(key) for key in ("source", "files", "layout"))
    if isinstance(source, Mapping):
        yield from (
            f"source.{key}: expected text, found {reprlib.repr(each)}"
            for key, each in source.items()
            if not isinstance(each, str)
        )
    if isinstance(layout, Mapping):
        yield from _wrong_layout(layout)
    if isinstance(files, Mapping):
        yield from (
            f"files: {printable(path)}: {wrong}" for path, each in files.items() if (wrong := _wrong(path, each))
        )


def _wrong_layout(layout: Mapping[str, Any]) -> Iterator[str]:
    empty = [key for key, each in layout.items() if each is None and key in options_of(SourceLayout)]
    yield from (f"layout.{key}: expected a value, found None" for key in empty)
    try:
        SourceLayout.from_content(layout)
    except InputError as error:
        yield from (each.removeprefix("source_") for each in error.problems)


def _wrong(path: str, data: Any) -> str | None:
    """What is wrong with a file of a record, in words."""
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or "\0" in path or str(place) != path or path in (".", ""):
        return "is not the path of a file inside of the result"
    if path == PROVENANCE_NAME:
        return "is the record itself"
    size, checksum = (data.get("bytes"), data.get("crc32")) if isinstance(data, Mapping) else (None, None)
    if type(size) is not int or not 0 <= size <= _LARGEST_FILE:
        return f"expected its size in bytes, found {reprlib.repr(data)}"
    if checksum is not None and not (isinstance(checksum, str) and _CHECKSUM.fullmatch(checksum)):
        return f"crc32: expected eight hexadecimal digits, found {reprlib.repr(checksum)}"
    return None
