"""Cutting a sequence of weights into consecutive ranges, with the least load of the heaviest range.

Used for layers over stages and for files over processes. Pure and deterministic: every process gets the same cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def balanced_ranges(weights: Sequence[int], count: int) -> list[range]:
    """`count` consecutive ranges of items with the least load of the heaviest range.

    No range is empty if there are enough items. Time is linear in the items, so it serves any number of files.
    """
    capacity = _least_capacity(weights, [0] * count)
    ranges, start = [], 0
    for number in range(count):
        load, stop = 0, start
        # Every later range gets one item at least.
        latest = max(len(weights) - (count - number - 1), start + 1)
        while stop < min(latest, len(weights)) and load + weights[stop] <= capacity:
            load += weights[stop]
            stop += 1
        ranges.append(range(start, stop))
        start = stop
    return ranges


def even_ranges(weights: Sequence[int], preload: Sequence[int]) -> list[range]:
    """One range of items for every load in `preload`, with the least sum of squared loads among the balanced cuts.

    A cut is balanced if its heaviest load, preload included, is the least possible. Time is quadratic in the items: for
    layers, not for files.
    """
    capacity = _least_capacity(weights, preload)
    sums = [0, *accumulate(weights)]
    count = len(weights)
    unreachable = float("inf")
    # costs[stop]: the least sum of squared loads of the ranges so far, if they end at `stop`.
    costs: list[float] = [0.0] + [unreachable] * count
    choices: list[list[int]] = []
    for carried in preload:
        best = [(unreachable, 0)] * (count + 1)
        for start, cost in enumerate(costs):
            if cost == unreachable:
                continue
            for stop in range(start, count + 1):
                load = carried + sums[stop] - sums[start]
                if load > capacity:
                    break
                best[stop] = min(best[stop], (cost + float(load) ** 2, start))
        costs = [cost for cost, _ in best]
        choices.append([start for _, start in best])
    ranges, stop = [], count
    for starts in reversed(choices):
        ranges.append(range(starts[stop], stop))
        stop = starts[stop]
    return ranges[::-1]


def _least_capacity(weights: Sequence[int], preload: Sequence[int]) -> int:
    """The least capacity with which ranges, filled one after the other on top of `preload`, take all the items."""
    low, high = max([*preload, *weights]) if weights else max(preload), max(preload) + sum(weights)
    while low < high:
        middle = (low + high) // 2
        if _suffices(weights, preload, middle):
            high = middle
        else:
            low = middle + 1
    return low


def _suffices(weights: Sequence[int], preload: Sequence[int], capacity: int) -> bool:
    taken = 0
    for carried in preload:
        load = carried
        while taken < len(weights) and load + weights[taken] <= capacity:
            load += weights[taken]
            taken += 1
    return taken == len(weights)
