"""The checksum of a file that was written in pieces is the one that everybody computes of the whole."""

from __future__ import annotations

import os
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as some

from distconv.errors import JobError
from distconv.formats.records import checksum_text
from distconv.transfer.checksum import Checksums, checksum_of, joined


@given(some.lists(some.binary(max_size=300), max_size=12), some.randoms(use_true_random=False))
def test_pieces_in_any_order_make_the_checksum_of_the_whole(pieces, random):
    whole = b"".join(pieces)
    starts = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
    written = list(zip(starts, pieces, strict=True))
    random.shuffle(written)
    checksums = Checksums()
    for start, piece in written:
        checksums.add("a file", start, piece)
        checksums.add("another", start, piece)
    assert checksums.taken("a file", len(whole)) == crc32(whole)


def test_large_pieces_are_joined_without_their_bytes():
    zeros, count = bytes(2**20), 3000
    expected = 0
    for _ in range(count):
        expected = crc32(zeros, expected)
    assert joined([(number * 2**20, 2**20, crc32(zeros)) for number in range(count)]) == expected


@pytest.mark.parametrize(
    ("pieces", "place"),
    [([(0, 4), (6, 4)], 4), ([(0, 4), (3, 7)], 4), ([(0, 8)], 8), ([(0, 8), (8, 8)], 16), ([(2, 8)], 0), ([], 0)],
    ids=["a gap", "twice", "an end", "too much", "a beginning", "nothing"],
)
def test_what_was_not_written_once_is_told(pieces, place):
    checksums = Checksums()
    for start, length in pieces:
        checksums.add("x.pt", start, bytes(length))
    with pytest.raises(JobError, match=rf"x\.pt: byte {place} of 10 was not written, or twice"):
        checksums.taken("x.pt", 10)


def test_a_file_that_was_taken_is_forgotten():
    checksums = Checksums()
    checksums.add("x", 0, b"12")
    assert checksums.taken("x", 2) == crc32(b"12")
    checksums.add("x", 0, b"3")
    assert checksums.taken("x", 1) == crc32(b"3")
    assert checksums.taken("x", 0) == 0


@pytest.mark.parametrize("nbytes", [0, 1, 2**20, 2**20 + 1, 3 * 2**20 - 1])
def test_a_file_is_read_in_pieces(tmp_path, nbytes):
    content = bytes(range(256)) * (nbytes // 256) + bytes(range(nbytes % 256))
    (tmp_path / "x").write_bytes(content + b"more")
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        assert checksum_of(descriptor, nbytes) == crc32(content)
        with pytest.raises(OSError, match="ends at byte"):
            checksum_of(descriptor, nbytes + 5)
    finally:
        os.close(descriptor)


def test_the_text_has_eight_digits():
    assert checksum_text(crc32(b"")) == "00000000"
    assert checksum_text(0xDEADBEEF) == "deadbeef"
