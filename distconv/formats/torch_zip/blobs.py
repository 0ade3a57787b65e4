"""Reading the structure of a file of concatenated `torch.save` archives (blobs), such as a `.distcp` file.

Owns the reads: few bytes and little time per blob. The structure of a single archive is that of `archive`. Imports and
calls nothing named in a file, and reads no tensor data.
"""

from __future__ import annotations

import io
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import EINVAL
from functools import lru_cache
from pathlib import Path
from typing import Any

from distconv.formats.torch_zip.archive import ArchivedTensor, archive_content, refusals
from distconv.runtime.regular_files import open_descriptor, read_at

# Holds the end of one archive and the beginning of the next one in most files, so that a tensor costs one read.
_BLOCK_BYTES = 16 << 10
_FORMS = 8
_END_BYTES = 56 + 20 + 22  # zip64 end of central directory, its locator, end of central directory
_ENTRY = b"PK\x01\x02"  # of the directory: 12 bytes, the checksum in 4, the rest


@contextmanager
def stored_within(path: Path, names: set[str] | None = None) -> Iterator[Callable[[int, int], Any]]:
    """A function that reads the archive at the bytes `offset` to `offset + length` of a file.

    Its result is a dictionary, as from `read_archive`, or a single tensor, with offsets in bytes in the file; it raises
    `InputError` for damaged bytes. In ascending order of offsets, a block of the file is read once. `names` gets the
    full names of all classes and functions in the pickles that are read.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    with refusals(str(path)):
        descriptor = open_descriptor(path)
    try:
        block = lru_cache(8)(lambda number: read_at(descriptor, _BLOCK_BYTES, number * _BLOCK_BYTES))
        forms: dict[int, list[_Form]] = defaultdict(list)

        def read(offset: int, length: int) -> Any:
            with refusals(f"{path}, {length} bytes from {offset}"):
                window = _Window(block, offset, length)
                for form in forms[length]:
                    if form.fits(window):
                        return replace(form.tensor, offset=offset + form.tensor.offset)
                content = archive_content(io.BufferedReader(window, 1024), offset, length, names)
                if isinstance(content, ArchivedTensor) and len(forms[length]) < _FORMS:
                    forms[length] += _form(window, replace(content, offset=content.offset - offset))
                return content

        yield read
    finally:
        os.close(descriptor)


class _Window(io.RawIOBase):
    """A range of bytes of a file as a stream, read in blocks."""

    def __init__(self, block: Callable[[int], bytes], offset: int, length: int) -> None:
        self._block, self._offset, self._length, self._position = block, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if base + position < 0:
            raise OSError(EINVAL, "damaged, or not an archive: it refers to bytes before its first one")
        self._position = base + position
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.bytes(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def bytes(self, start: int, length: int) -> bytes:
        """The bytes `start` to `start + length` of the range, fewer at its end."""
        low = self._offset + start
        high = min(low + length, self._offset + self._length)
        number, skipped = divmod(low, _BLOCK_BYTES)
        data = self._block(number)[skipped : skipped + max(0, high - low)]
        while low + len(data) < high and (more := self._block(number := number + 1)):
            data += more[: high - low - len(data)]
        return data

    @property
    def length(self) -> int:
        return self._length


@dataclass(frozen=True, kw_only=True)
class _Form:
    """The bytes that archives of tensors with one element type and shape share: everything but data and checksums.

    `head`: the bytes before the data, with the pickle; `directory`: the zip's directory, from byte `start` on, with
    zeros as checksums.
    """

    head: bytes
    start: int
    directory: bytes
    tensor: ArchivedTensor

    def fits(self, window: _Window) -> bool:
        return window.bytes(0, len(self.head)) == self.head and _directory(window, self.start) == self.directory


def _form(window: _Window, tensor: ArchivedTensor) -> list[_Form]:
    """The form of an archive whose members are in torch's order, the pickle first; otherwise an empty list."""
    end = window.bytes(window.length - _END_BYTES, _END_BYTES)
    if tensor.offset > _BLOCK_BYTES or not end.startswith(b"PK\x06\x06"):
        return []
    (start,) = struct.unpack_from("<Q", end, 48)
    directory = window.bytes(start, window.length - start)
    header, name = struct.unpack_from("<28xH12xI", directory), directory[46:]
    if header[1] != 0 or not name[: header[0]].endswith(b"/data.pkl"):
        return []
    return [_Form(head=window.bytes(0, tensor.offset), start=start, directory=_directory(window, start), tensor=tensor)]


def _directory(window: _Window, start: int) -> bytes:
    entries = window.bytes(start, window.length - start).split(_ENTRY)
    return _ENTRY.join(entry[:12] + entry[16:] if b"data/" in entry else entry for entry in entries)
