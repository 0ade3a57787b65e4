"""The identity of files that a job looks at once and reads later, and its comparison with what is there.

Owns what makes a file the same as before: size, modification time and header everywhere, device and inode only for a
process that compares with what it saw itself. Knows nothing of what files hold, and follows no format.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex

from distconv.runtime.regular_files import open_file, read_at
from distconv.tensors.stored import Header, Inode, SourceFile

# The most bytes of a header in memory at a time.
_PIECE = 1024 * 1024
_DIGEST_BYTES = 16
_SECOND = 1_000_000_000

Ranges = Sequence[tuple[int, int]]


@cache
def this_process() -> str:
    """A name of this process that no other has, on any machine."""
    return token_hex(8)


def look_at(path: str | Path, descriptor: int | None = None) -> SourceFile:
    """The identity of a file without a header; an open one has its `descriptor`.

    Taken before the file is read, it is that of what is read: to write later changes the modification time.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path if descriptor is None else descriptor)
    inode = Inode(this_process(), status.st_dev, status.st_ino)
    return SourceFile(str(path), status.st_size, status.st_mtime_ns, None, inode)


def with_header(file: SourceFile, ranges: Ranges, content: Iterable[bytes]) -> SourceFile:
    """The file with a header, whose ranges hold this content."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for piece in content:
        digest.update(piece)
    return replace(file, header=Header(tuple(ranges), digest.hexdigest()))


def look_into(file: SourceFile, descriptor: int, ranges: Ranges) -> SourceFile:
    """The open file with a header of those ranges, in bytes.

    Raises:
        OSError: they cannot be read.
    """
    return with_header(file, ranges, _content(descriptor, ranges))


def look_again(known: SourceFile, descriptor: int) -> SourceFile:
    """The identity of an open file, to be compared with what is known of it; one of another size has no header.

    Raises:
        OSError: the file cannot be read.
    """
    found = look_at(known.path, descriptor)
    if known.header is None or found.size != known.size:
        return found
    return look_into(found, descriptor, known.header.ranges)


def read_whole(path: Path) -> tuple[bytes, SourceFile]:
    """The content of a regular file, and its identity, of which the header is all of that.

    Raises:
        OSError: it cannot be opened or read, or is something else.
    """
    with open_file(path) as stream:
        file = look_at(path, stream.fileno())
        content = stream.read()
    return content, with_header(file, [(0, len(content))], [content])


def changes(known: SourceFile, found: SourceFile) -> list[str]:
    """What of a file is not as it is known, in words; empty for the same file."""
    words = []
    if found.size != known.size:
        words.append(f"was {known.size} bytes long when the job first read it, now {found.size}")
    before, after = known.mtime_ns, found.mtime_ns
    if before is not None and after is not None and before != after:
        words.append(f"was modified at {_time(before)} when the job first read it, now at {_time(after)}")
    if known.header is not None and found.header is not None and known.header != found.header:
        whole = known.header.ranges == ((0, known.size),)
        words.append(f"its {'content' if whole else 'header'} is another")
    here, there = known.inode, found.inode
    if here is not None and there is not None and here.process == there.process and here != there:
        words.append("another file has taken its name")
    return words


def _content(descriptor: int, ranges: Ranges) -> Iterator[bytes]:
    for start, stop in ranges:
        for position in range(start, stop, _PIECE):
            yield read_at(descriptor, min(_PIECE, stop - position), position)


def _time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, _SECOND)
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}.{rest:09} UTC"
    except (OverflowError, ValueError, OSError):
        # A year that no calendar has.
        return f"{seconds}.{rest:09} s"
