"""Reading a result back: one process's share of comparing it with its source, through the reader of its users.

Owns the comparison and its words. What a tensor should be is produced anew from the source and compared with the bytes
that the reader gives, so that no knowledge of where a writer puts a tensor is shared. Writes nothing.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from distconv.errors import ReaderError, named
from distconv.formats.readers import Reader, ReadFile
from distconv.formats.records import Entry, OutputFile, Plan, all_entries, mismatch, whole_of
from distconv.runtime.mapped_pages import MappedPages
from distconv.runtime.progress import reached
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.transfer.batches import Batch, batches
from distconv.transfer.files import read_into
from distconv.transfer.means import Means
from distconv.transfer.sinks import Counters

# Bytes that are compared at a time; so many pages of a mapping are in use by a thread.
_PIECE = 1024 * 1024


def read_back(plan: Plan, files: Sequence[OutputFile], directory: Path, reader: Reader, means: Means) -> list[str]:
    """The differences between files below a directory, as a reader gives them, and what the plan says, in words.

    What cannot be compared counts as done. Of a part of a file, all that its header says is compared, and its own data.

    Raises:
        JobError: a read of the source failed.
    """
    differences: list[str] = []
    for batch in batches(plan, files):
        paths = {file: str(directory / file.path) for file in batch.files}
        opened: dict[str, _Opened] = {}
        offsets: dict[tuple[OutputFile, str, str], int] = {}
        checked: dict[OutputFile, tuple[Entry, ...]] = {}
        for file, entries in batch.files.items():
            reached(paths[file])
            try:
                found = reader.open(directory, whole_of(file))
            except ReaderError as error:
                differences.append(str(error))
                continue
            differences += [f"{paths[file]}: {line}" for line in _wrong_forms(all_entries(plan, file), found)]
            alike = tuple(each for each in entries if found.forms.get((each.key, each.name)) == _form(each))
            checked[file] = alike
            opened[paths[file]] = place = _Opened(reader.name, paths[file], found, alike)
            starts = zip(alike, place.starts, strict=True)
            offsets |= {(file, entry.key, entry.name): start for entry, start in starts}
        nbytes = sum(entry.nbytes for entries in checked.values() for entry in entries)
        means.counters.add(done=sum(file.nbytes for file in batch.files) - nbytes)
        means.produce(Batch(files=checked).work(paths, offsets), ReadBackSink(opened, means.counters))
        differences += [line for each in opened.values() for line in each.differences()]
    return differences


def read_beside(directory: Path, reader: Reader) -> list[str]:
    """What a reader finds otherwise than planned in the files beside the tensors, in words."""
    try:
        return reader.beside(directory)
    except ReaderError as error:
        return [str(error)]


def _form(entry: Entry) -> tuple[str, tuple[int, ...]]:
    return entry.tensor.dtype, tuple(entry.shape)


def _wrong_forms(entries: Sequence[Entry], found: ReadFile) -> Iterator[str]:
    """What a file holds otherwise than its entries, or besides them, in words."""
    yield from found.differences
    expected = {(entry.key, entry.name): entry for entry in entries}
    for key, entry in expected.items():
        if key not in found.forms:
            yield f"{entry.title} is missing"
        elif (wrong := mismatch(entry, *found.forms[key])) is not None:
            yield f"{entry.title} {wrong}"
    for key in found.forms.keys() - expected.keys():
        yield f"{'/'.join(filter(None, key))} is not expected"


@dataclass(kw_only=True)
class _Held:
    """A tensor as its reader gave it, `None` if it did not, and the bytes of it that are still to be compared."""

    data: memoryview | None
    left: int


class _Opened:
    """A file as a reader gives it, as a place of work: its tensors, one after the other, are its bytes.

    `starts`: the offsets of its entries in these bytes. A tensor is asked for when its first bytes are compared, and
    let go after its last ones; several threads may compare parts of it.
    """

    def __init__(self, reader: str, path: str, file: ReadFile, entries: Sequence[Entry]) -> None:
        self._path = path
        self.starts = list(accumulate((entry.nbytes for entry in entries), initial=0))[:-1]
        self._reader, self._file, self._entries = reader, file, entries
        self._filled = [number for number, entry in enumerate(entries) if entry.nbytes]
        self._begins = [self.starts[number] for number in self._filled]
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._wrong: dict[int, str] = {}
        # The first other byte of each tensor that has one.
        self._different: dict[int, int] = {}
        self._pages = MappedPages(Path(path)) if file.is_mapped else None
        for number, entry in enumerate(entries):
            if not entry.nbytes:
                self._ask(number)

    def compare(self, offset: int, expected: memoryview) -> None:
        """Compare what should be at an offset, within one tensor, with what the reader gives."""
        number = self._filled[bisect_right(self._begins, offset) - 1]
        with self._lock:
            held = self._held.get(number) or self._ask(number)
            held.left -= len(expected)
            if held.left == 0:
                del self._held[number]
        if held.data is not None:
            self._compare(number, held.data, offset - self.starts[number], expected)

    def _compare(self, number: int, data: memoryview, start: int, expected: memoryview) -> None:
        """Compare what should be from byte `start` of a tensor on with the bytes that the reader gave."""
        for begin in range(0, len(expected), _PIECE):
            wanted = np.frombuffer(expected[begin : begin + _PIECE], np.uint8)
            found = np.frombuffer(data, np.uint8, len(wanted), start + begin)
            if not np.array_equal(wanted, found):
                at = start + begin + int(np.argmax(wanted != found))
                with self._lock:
                    self._different[number] = min(at, self._different.get(number, at))
            if self._pages is not None:
                self._pages.drop(found.ctypes.data, len(found))

    def differences(self) -> Iterator[str]:
        """What was found, in words: each reason why tensors cannot be read, and each tensor that is another."""
        unread: dict[str, list[str]] = {}
        for number, reason in sorted(self._wrong.items()):
            unread.setdefault(reason, []).append(self._entries[number].title)
        yield from (f"{reason} ({named(titles, 3)})" for reason, titles in unread.items())
        for number, byte in sorted(self._different.items()):
            tensor = self._entries[number].tensor
            yield (
                f"{self._path}: {self._entries[number].title} is not what its source says, from element "
                f"{byte // ITEM_SIZE[tensor.dtype]:,} of {tensor.elements:,} on, as {self._reader} reads it"
            )

    def _ask(self, number: int) -> _Held:
        entry = self._entries[number]
        data = None
        try:
            data = self._file.data((entry.key, entry.name))
        except ReaderError as error:
            self._wrong[number] = str(error)
        held = _Held(data=data, left=entry.nbytes)
        if held.left:
            self._held[number] = held
        return held


class ReadBackSink:
    """Compares finished bytes with files as a reader gives them, by their paths."""

    def __init__(self, files: Mapping[str, _Opened], counters: Counters) -> None:
        self._files = files
        self._counters = counters

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:
        """Compare a run of the source."""
        for start in range(0, nbytes, len(scratch)):
            piece = scratch[: min(len(scratch), nbytes - start)]
            read_into(source, source_offset + start, piece)
            self._files[path].compare(offset + start, piece)
            self._counters.add(read=2 * len(piece), done=len(piece))

    def put(self, path: str, offset: int, data: memoryview) -> None:
        """Compare bytes."""
        self._files[path].compare(offset, data)
        self._counters.add(read=len(data), done=len(data))
