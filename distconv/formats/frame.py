"""The frame of a file: all of its bytes that are not tensor data.

Owns how frames are written and compared with files, so that what is written and what is verified is one thing. Knows no
format.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distconv.runtime.regular_files import open_descriptor, read_at


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The bytes of a file that are not tensor data; offsets and sizes are in bytes.

    `pieces` are (offset, bytes) in ascending order; what lies between them is tensor data. `holes` are the offsets of
    that data, of empty tensors too, in the order of the tensors. `nbytes` is the size of the whole file.
    """

    pieces: Sequence[tuple[int, bytes]]
    holes: Sequence[int]
    nbytes: int


def text_frame(content: bytes) -> Frame:
    """The frame of a file without tensors."""
    return Frame(pieces=[(0, content)], holes=(), nbytes=len(content))


def joined_frames(frames: Iterable[Frame]) -> Frame:
    """The frame of a file of several parts, one after the other; the bytes of the parts are shared, not copied."""
    pieces: list[tuple[int, bytes]] = []
    holes: list[int] = []
    start = 0
    for frame in frames:
        pieces.extend((start + offset, data) for offset, data in frame.pieces)
        holes.extend(start + hole for hole in frame.holes)
        start += frame.nbytes
    return Frame(pieces=pieces, holes=holes, nbytes=start)


def heads(frame: Frame, sizes: Iterable[int]) -> tuple[Mapping[int, bytes], Frame]:
    """What lies in front of the data of tensors of these sizes in bytes, by its offset; and the frame of the rest.

    A file has a head for each tensor that has data; each can be written together with that.
    """
    begins = {hole for hole, size in zip(frame.holes, sizes, strict=True) if size}
    found: dict[int, bytes] = {}
    rest: list[tuple[int, bytes]] = []
    adjacent: list[tuple[int, bytes]] = []
    for offset, data in frame.pieces:
        if adjacent and adjacent[-1][0] + len(adjacent[-1][1]) != offset:
            rest += adjacent
            adjacent = []
        adjacent.append((offset, data))
        if (end := offset + len(data)) in begins:
            found[end] = b"".join(data for _, data in adjacent)
            adjacent = []
    return found, replace(frame, pieces=[*rest, *adjacent])


def write_frame(path: Path, frame: Frame) -> None:
    """Write a file that reads as zeros where its tensor data belongs.

    Raises:
        OSError: the file cannot be written.
    """
    position = 0
    with path.open("wb") as stream:
        for offset, data in frame.pieces:
            # A seek writes out what is buffered, even one that goes nowhere.
            if offset != position:
                stream.seek(offset)
            stream.write(data)
            position = offset + len(data)
        if position != frame.nbytes:
            stream.truncate(frame.nbytes)


def first_difference(path: Path, frame: Frame) -> int | None:
    """The offset in bytes of the first byte of an existing file that is not as in the frame; `None` without one.

    A file that is longer or shorter differs at its end or at that of the frame.

    Raises:
        OSError: the file is missing, no regular file, or cannot be read.
    """
    descriptor = open_descriptor(path)
    try:
        size = os.fstat(descriptor).st_size
        for offset, data in frame.pieces:
            found = read_at(descriptor, len(data), offset)
            if found != data:
                pairs = enumerate(zip(found, data, strict=False))
                return offset + next((at for at, (one, other) in pairs if one != other), len(found))
        return None if size == frame.nbytes else min(size, frame.nbytes)
    finally:
        os.close(descriptor)
