"""Cuts are optimal: compared with all the cuts there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.layout.partition import balanced_ranges, even_ranges

WEIGHTS = st.lists(st.integers(0, 20), max_size=7)
PARTS = st.integers(1, 4)
PRELOADS = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def loads(ranges: Sequence[range], weights: Sequence[int], preload: Sequence[int]) -> list[int]:
    return [carried + sum(weights[item] for item in part) for part, carried in zip(ranges, preload, strict=True)]


def every_cut(items: int, parts: int) -> Iterator[list[range]]:
    for cuts in combinations_with_replacement(range(items + 1), parts - 1):
        yield [range(start, stop) for start, stop in pairwise((0, *cuts, items))]


def assert_cuts(ranges: Sequence[range], items: int, parts: int) -> None:
    assert len(ranges) == parts
    assert [item for part in ranges for item in part] == list(range(items))


@given(WEIGHTS, PARTS)
def test_balanced_ranges_have_the_lightest_heaviest_range(weights, parts):
    found = balanced_ranges(weights, parts)
    assert_cuts(found, len(weights), parts)
    nothing = [0] * parts
    least = min(max(loads(cut, weights, nothing)) for cut in every_cut(len(weights), parts))
    assert max(loads(found, weights, nothing)) == least


@given(WEIGHTS, st.integers(1, 10))
def test_no_balanced_range_is_empty_while_there_are_items(weights, parts):
    found = balanced_ranges(weights, parts)
    assert sum(len(part) > 0 for part in found) == min(parts, len(weights))


@given(WEIGHTS, PRELOADS)
def test_even_ranges_have_the_lightest_heaviest_range_and_then_the_least_sum_of_squares(weights, preload):
    def cost(ranges: Sequence[range]) -> tuple[int, int]:
        found = loads(ranges, weights, preload)
        return max(found), sum(load**2 for load in found)

    found = even_ranges(weights, preload)

    assert_cuts(found, len(weights), len(preload))
    assert cost(found) == min(map(cost, every_cut(len(weights), len(preload))))


@pytest.mark.parametrize(
    ("weights", "preload", "expected"),
    [
        ([1] * 8, [0, 0], [4, 4]),
        ([1] * 8, [4, 0, 0], [0, 4, 4]),
        ([5, 1, 1, 1], [0, 0], [1, 3]),
        ([], [3, 0], [0, 0]),
        # A part that is too heavy as it is does not make the others uneven.
        ([1] * 6, [10, 0, 0, 0], [0, 2, 2, 2]),
        ([1] * 6, [0, 0, 0, 10], [2, 2, 2, 0]),
    ],
)
def test_what_even_means(weights, preload, expected):
    assert [len(part) for part in even_ranges(weights, preload)] == expected


def test_the_bytes_of_real_checkpoints_are_cut_exactly():
    layer = 436_281_344
    assert [len(part) for part in even_ranges([layer] * 80, [0] * 8)] == [10] * 8
    assert [len(part) for part in balanced_ranges([layer] * 80, 8)] == [10] * 8


@given(WEIGHTS, PARTS, PRELOADS)
def test_the_answer_is_always_the_same(weights, parts, preload):
    assert balanced_ranges(weights, parts) == balanced_ranges(tuple(weights), parts)
    assert even_ranges(weights, preload) == even_ranges(tuple(weights), tuple(preload))
