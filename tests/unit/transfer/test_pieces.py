"""Pieces are small while what is read is in memory, and large where a file system lets threads wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from distconv.transfer.pieces import Pieces

KIB = 1024
QUICK, SLOW = 0.0005, 0.005


def sizes(waits: list[float]) -> list[int]:
    """The size of the piece after each wait, in KiB."""
    pieces, found = Pieces(), []
    for wait in waits:
        pieces.learn(wait)
        found.append(pieces.nbytes // KIB)
    return found


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        ([QUICK] * 3, [512] * 3),
        ([SLOW] * 7, [512, 1024, 2048, 4096, 8192, 8192, 8192]),
        ([SLOW, QUICK, SLOW, QUICK], [512] * 4),
        ([SLOW] * 3 + [QUICK] * 3, [512, 1024, 2048, 1024, 512, 512]),
    ],
    ids=["memory", "a slow file system", "a busy core", "an end of slowness"],
)
def test_sizes(waits, expected):
    assert sizes(waits) == expected


def test_each_thread_has_its_own():
    pieces = Pieces()
    pieces.learn(SLOW)
    pieces.learn(SLOW)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: pieces.nbytes).result() == 512 * KIB

    assert pieces.nbytes == 1024 * KIB
