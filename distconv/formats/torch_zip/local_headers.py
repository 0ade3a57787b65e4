"""The local headers of a zip, which stand in front of its members and say where their data begins.

Owns how they are read: there is one for each tensor, and each is a request, so those of a file are read by several
threads. Trusts no directory of a zip to know what only they say.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from typing import IO
from zipfile import ZipInfo

from distconv.runtime.hand_out import on_threads

_NBYTES = 30
# Reads of a file at a time; several files are read at a time, too.
_AT_ONCE = 8


class LocalHeaders:
    """The local headers in an open file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._known: dict[int, bytes] = {}

    def read_ahead(self, members: Iterable[ZipInfo]) -> None:
        """Read those of all members; the stream is that of a whole file.

        Raises:
            OSError: they cannot be read.
        """
        descriptor = self._stream.fileno()
        # What has no place in a file is an error where it is asked for.
        offsets = [info.header_offset for info in members if info.header_offset >= 0]

        def read(part: Sequence[int]) -> list[bytes]:
            return [os.pread(descriptor, _NBYTES, offset) for offset in part]

        parts = [offsets[first::_AT_ONCE] for first in range(_AT_ONCE)]
        for part, found in zip(parts, on_threads(read, parts, _AT_ONCE), strict=True):
            self._known.update(zip(part, found, strict=True))

    def data_offset(self, member: ZipInfo) -> int:
        """Where the data of a member begins.

        Raises:
            OSError, ValueError, struct.error: there is no such header in the file.
        """
        header = self._known.get(member.header_offset)
        if header is None or len(header) < _NBYTES:
            self._stream.seek(member.header_offset)
            header = self._stream.read(_NBYTES)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return member.header_offset + _NBYTES + int(name_length) + int(extra_length)
