"""What a job makes, and what it has finished of that: enough for the same command to continue it after any end.

Owns two kinds of files in a directory of work: the description of the result, and for each process a journal with a
line for each file that it has finished. A line that was cut off is none. Says only what its writer left; whether that
is still there is asked of the files themselves (`transfer.continuing`). Follows no path that a journal names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

from distconv.errors import printable
from distconv.formats.records import Written
from distconv.runtime.durability import synchronise_directory
from distconv.runtime.progress import reached

_DESCRIPTION = "job.json"
_JOURNAL = "finished-"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a result is made from and how, as plain data: with an equal one, any process makes the same bytes.

    `result`: its name; `version` of distconv; `directories` that are read, by option; `options` that shape the result,
    by their dotted keys; `definitions`: a digest of model definition and dialects; `sources`: size, modification time
    and digest of the header of every file that the job was planned with, by path; `files`: a digest of the names and
    sizes of the files of the result.
    """

    result: str
    version: str
    directories: Mapping[str, str]
    options: Mapping[str, Any]
    definitions: str
    sources: Mapping[str, Any] = field(repr=False)
    files: str

    def differences(self, now: Description) -> list[str]:
        """What is not the same `now`, in words; a few of many."""
        found = []
        if self.version != now.version:
            found.append(f"distconv was {self.version}, is {now.version}")
        for before, after in ((self.directories, now.directories), (self.options, now.options)):
            found += [f"{key}: was {was}, is {now_is}" for key, was, now_is in _changes(before, after)]
        changed = [path for path, _, _ in _changes(self.sources, now.sources)]
        found += [f"{printable(path)} is not the file that it was" for path in islice(changed, _SHOWN)]
        if len(changed) > _SHOWN:
            found.append(f"{len(changed) - _SHOWN} more files of the source are not what they were")
        if self.definitions != now.definitions:
            found.append("the model definition, or a dialect, is another one")
        return found or ([] if self.files == now.files else ["the files of the result are others"])


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A file of a result that its writer had finished, and synchronised if it is `durable`.

    `overflowed`: element type → tensor → the number of elements of the file that a cast has made infinite.
    """

    written: Written
    durable: bool
    overflowed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def can_be_proved(self) -> bool:
        """Whether it can be told that the file is as its writer left it, whatever ended the job."""
        return self.written.checksum is not None or self.durable

    def to_json(self) -> list[Any]:
        """Plain data; `from_json` reads it."""
        return [self.written, self.durable, self.overflowed]

    @staticmethod
    def from_json(data: Any) -> Finished:
        """The file in the data of `to_json`.

        Raises:
            ValueError, TypeError: it is no such data.
        """
        (nbytes, checksum), durable, overflowed = data
        if type(nbytes) is not int or type(checksum) not in (int, type(None)) or not isinstance(overflowed, dict):
            raise ValueError(data)
        return Finished(written=Written(nbytes, checksum), durable=durable is True, overflowed=overflowed)


class Journal:
    """The journal of one process in a directory of work; each line is there whole or not at all."""

    def __init__(self, work: Path, rank: int, *, durable: bool) -> None:
        """`durable`: files are synchronised before they are added, and so is each line; it will be at `path`."""
        self.path = work / f"{_JOURNAL}{rank}"
        self.durable = durable

    def add(self, finished: Mapping[str, Finished]) -> None:
        """Add files that are finished, by their paths below the result.

        Raises:
            OSError: that cannot be written.
        """
        # One that was cut off, of a process before this one, ends here.
        line = b"\n" + json.dumps({path: each.to_json() for path, each in finished.items()}).encode() + b"\n"
        begun = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            if self.durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if begun and self.durable:
            synchronise_directory(str(self.path.parent))


def describe_work(work: Path, description: Description, *, durable: bool) -> None:
    """Write what is made in a directory of work.

    Raises:
        OSError: that cannot be written.
    """
    path = work / _DESCRIPTION
    reached(path)
    with path.open("wb") as stream:
        stream.write(json.dumps(asdict(description)).encode())
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    if durable:
        synchronise_directory(str(work))


def forget_description(work: Path, *, durable: bool) -> None:
    """Let nobody continue what was made in a directory of work: from now on it is worth nothing.

    Raises:
        OSError: that is refused.
    """
    (work / _DESCRIPTION).unlink(missing_ok=True)
    if durable:
        synchronise_directory(str(work))


def description_of(work: Path) -> Description | None:
    """What was made in a directory of work; `None` if it does not say: then it cannot be continued.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content = json.loads((work / _DESCRIPTION).read_bytes())
        values = {each.name: content[each.name] for each in fields(Description)}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return None
    mappings = ("directories", "options", "sources")
    return Description(**values) if all(isinstance(values[key], dict) for key in mappings) else None


def finished_in(work: Path) -> dict[str, Finished]:
    """The files that the processes of a job have finished, by path below the result, and that can be proved."""
    lines = (line for path in _journals(work) for line in _lines(path))
    return {path: each for line in lines for path, each in line.items() if each.can_be_proved}


def _journals(work: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in work.iterdir() if path.name.startswith(_JOURNAL))
    except OSError:
        return []


def _lines(path: Path) -> Iterator[dict[str, Finished]]:
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.splitlines():
        try:
            yield {name: Finished.from_json(data) for name, data in json.loads(line).items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The keys with other values, and both; what is not there is `not given`."""
    missing = "not given"
    keys = dict.fromkeys((*before, *after))
    pairs = ((key, before.get(key, missing), after.get(key, missing)) for key in keys)
    return [(key, was, now_is) for key, was, now_is in pairs if was != now_is]
