"""Layers over ranks with several stages each, compared with all the cuts there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distconv.layout.interleaving import heaviest, interleaved_ranges
from distconv.layout.partition import even_ranges

WEIGHTS = st.lists(st.integers(0, 20), max_size=7)
LOADS = st.integers(0, 40)


@st.composite
def stages(draw: st.DrawFn) -> tuple[list[int], int]:
    """What the stages carry already, and the number of ranks."""
    ranks, virtual = draw(st.sampled_from([(1, 2), (1, 3), (2, 2), (2, 3), (3, 2)]))
    return draw(st.lists(st.just(0) | LOADS, min_size=ranks * virtual, max_size=ranks * virtual)), ranks


def best(weights: Sequence[int], preload: Sequence[int], ranks: int) -> tuple[int, int]:
    return min(heaviest(parts, weights, preload, ranks) for parts in every_cut(len(weights), len(preload)))


def every_cut(items: int, parts: int) -> Iterator[list[range]]:
    for cuts in combinations_with_replacement(range(items + 1), parts - 1):
        yield [range(start, stop) for start, stop in pairwise((0, *cuts, items))]


@given(WEIGHTS, stages())
def test_every_item_is_in_one_part_in_order(weights, carried):
    found = interleaved_ranges(weights, *carried)
    assert len(found) == len(carried[0])
    assert [item for part in found for item in part] == list(range(len(weights)))


@settings(max_examples=200)
@given(st.integers(0, 20), st.integers(0, 8), stages())
def test_equal_weights_are_cut_exactly(weight, count, carried):
    found = interleaved_ranges([weight] * count, *carried)
    assert heaviest(found, [weight] * count, *carried) == best([weight] * count, *carried)


@settings(max_examples=200)
@given(WEIGHTS, stages())
def test_the_heaviest_rank_is_at_most_the_heaviest_weight_above_the_best(weights, carried):
    found = interleaved_ranges(weights, *carried)
    assert heaviest(found, weights, *carried)[0] <= best(weights, *carried)[0] + max(weights, default=0)


@given(WEIGHTS, st.lists(LOADS, min_size=1, max_size=4))
def test_one_stage_for_each_rank_is_cut_as_evenly_as_ever(weights, preload):
    assert interleaved_ranges(weights, preload, len(preload)) == even_ranges(weights, preload)


@pytest.mark.parametrize(
    ("weights", "preload", "ranks", "expected"),
    [
        ([1] * 8, [0, 0, 0, 0], 2, [2, 2, 2, 2]),
        # What one stage of a rank carries, the other makes room for.
        ([1] * 6, [3, 0, 0, 0], 2, [0, 2, 2, 2]),
        ([1] * 7, [5, 0, 0, 0], 2, [0, 3, 1, 3]),
        # The rank counts before the stage.
        ([1] * 4, [4, 0, 4, 0], 2, [0, 2, 0, 2]),
        ([1] * 4, [4, 0, 0, 0], 2, [0, 2, 0, 2]),
        ([], [1, 0], 1, [0, 0]),
    ],
)
def test_examples(weights, preload, ranks, expected):
    assert [len(part) for part in interleaved_ranges(weights, preload, ranks)] == expected


def test_the_bytes_of_real_checkpoints_are_cut_exactly():
    layer, embedding = 436_281_344, 1_090_519_040
    carried = [embedding] + [0] * 30 + [0]
    carried[24] = embedding
    found = interleaved_ranges([layer] * 80, carried, 8)
    # Ranks 1 to 7 have 11 layers each, or 10, and rank 0 less by what the ends weigh.
    assert heaviest(found, [layer] * 80, carried, 8) == (11 * layer, 3 * layer)


def test_heaviest_adds_up_the_stages_of_a_rank():
    assert heaviest([range(2), range(2, 3), range(3, 3), range(3, 4)], [1, 2, 3, 4], [0, 0, 5, 0], 2) == (8, 5)


def test_a_rank_that_holds_both_ends_gets_fewer_layers_than_stage_by_stage():
    """Qwen2-VL-7B in u shape, in MB: encoder and embedding on stage 0, the head on the first of the last four."""
    carried = [1300 + 1090] + [0] * 11 + [1090] + [0] * 3
    layers = [466] * 28
    assert heaviest(interleaved_ranges(layers, carried, 4), layers, carried, 4) == (9 * 466, 2390)
    assert heaviest(even_ranges(layers, carried), layers, carried, 4) == (2390 + 1090 + 4 * 466, 2390)
