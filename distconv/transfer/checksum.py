"""Checksums of files that are written in pieces, in any order and on several threads: CRC-32, as zip and gzip have it.

Owns its arithmetic: the checksum of a file follows from those of its pieces, so that nothing is read again, and is the
same for any number of threads, buffers and processes. CRC-32 finds damage, not forgery. Reads and writes no file but
for `checksum_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from zlib import crc32

from distconv.errors import JobError
from distconv.transfer.files import read_into

# Consecutive bytes of a file: offset, size in bytes, checksum.
Piece = tuple[int, int, int]

# The polynomial of CRC-32 with its bits reversed, and 1 as a residue modulo it: bit 31 is the coefficient of x^0.
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
# Bytes that are read at a time: they are still in the cache when they are summed.
_PIECE = 1024 * 1024


class Checksums:
    """The checksums of the pieces of files that are being written; safe to use from several threads.

    A piece is summed by the thread that writes it, while it is in the cache of its core: handing it to another core
    takes longer than the sum.
    """

    def __init__(self) -> None:
        # A dictionary's `setdefault` and a list's `append` are atomic.
        self._pieces: dict[str, list[Piece]] = {}

    def add(self, path: str, offset: int, data: bytes | memoryview) -> None:
        """Take a piece into account that is written at `offset` of the file at `path`."""
        self.add_summed(path, offset, len(data), crc32(data))

    def add_summed(self, path: str, offset: int, nbytes: int, checksum: int) -> None:
        """Take a piece of this size in bytes into account whose checksum is known."""
        if nbytes:
            self._pieces.setdefault(path, []).append((offset, nbytes, checksum))

    def add_all(self, path: str, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Take pieces into account, given as (offset, bytes)."""
        for offset, data in pieces:
            self.add(path, offset, data)

    def taken(self, path: str, nbytes: int) -> int:
        """The checksum of a finished file of this size in bytes, which is forgotten.

        Raises:
            JobError: its pieces do not cover all of it exactly once.
        """
        return checksum_of_pieces(path, nbytes, self.pieces(path))

    def pieces(self, path: str) -> list[Piece]:
        """The pieces of a file that this process has written, consecutive ones as one, which are forgotten."""
        return in_a_row(self._pieces.pop(path, []))


def in_a_row(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces in ascending order, consecutive ones as one."""
    rows: list[list[Piece]] = []
    position = None
    for piece in sorted(pieces):
        if piece[0] != position:
            rows.append([])
        rows[-1].append(piece)
        position = piece[0] + piece[1]
    return [(row[0][0], sum(nbytes for _, nbytes, _ in row), joined(row)) for row in rows]


def checksum_of_pieces(path: str, nbytes: int, pieces: Iterable[Piece]) -> int:
    """The checksum of a file of this size in bytes, written in these pieces.

    Raises:
        JobError: they do not cover all of it exactly once.
    """
    rows = in_a_row(pieces)
    if not rows and not nbytes:
        return 0
    # Where the bytes end that begin the file.
    position = rows[0][1] if rows and not rows[0][0] else 0
    if len(rows) == 1 and position == nbytes:
        return rows[0][2]
    raise JobError(f"{path}: byte {position:,} of {nbytes:,} was not written, or twice; a fault of distconv")


def joined(pieces: Iterable[Piece]) -> int:
    """The checksum of consecutive pieces."""
    total = 0
    for _, nbytes, checksum in pieces:
        total = _product(_power(nbytes), total) ^ checksum
    return total


def checksum_of(descriptor: int, nbytes: int, tell: Callable[[int], object] = lambda _: None) -> int:
    """The checksum of the first `nbytes` of an open file; `tell` gets the size in bytes of every piece that was read.

    Raises:
        OSError: it cannot be read, or ends before.
    """
    buffer = memoryview(bytearray(min(_PIECE, nbytes)))
    total = 0
    for start in range(0, nbytes, _PIECE):
        piece = buffer[: min(_PIECE, nbytes - start)]
        read_into(descriptor, start, piece)
        total = crc32(piece, total)
        tell(len(piece))
    return total


@lru_cache(maxsize=4096)
def _power(nbytes: int) -> int:
    """The power of x by which so many bytes multiply a checksum before them, modulo the polynomial."""
    power, square = _ONE, _ONE >> 8
    while nbytes:
        if nbytes & 1:
            power = _product(square, power)
        square = _product(square, square)
        nbytes >>= 1
    return power


def _product(one: int, other: int) -> int:
    """The product of two polynomials over GF(2), modulo the polynomial of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product
