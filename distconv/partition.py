"""Cutting a sequence of weights into consecutive parts whose heaviest is as light as possible.

Used for layers over stages and for files over processes. Pure and deterministic: every process finds the same cuts.
"""

from __future__ import annotations

from collections.abc import Sequence


def balanced_parts(weights: Sequence[int], parts: int, preload: Sequence[int] = ()) -> list[range]:
    """The consecutive ranges of items, one per part, that minimise the heaviest part; parts may be empty.

    `preload` is what each part carries already. Without one, no part is empty if there are enough items.
    """
    carried = list(preload) or [0] * parts
    low, high = max([*carried, *weights, 0]), max(carried) + sum(weights)
    while low < high:
        middle = (low + high) // 2
        if _filled(weights, carried, middle)[-1].stop == len(weights):
            high = middle
        else:
            low = middle + 1
    return _filled(weights, carried, low, nonempty=not preload)


def _filled(weights: Sequence[int], carried: Sequence[int], capacity: int, *, nonempty: bool = False) -> list[range]:
    """Each part in turn takes items up to the capacity, leaving one for each later part where `nonempty` asks so."""
    ranges, start = [], 0
    for number, preloaded in enumerate(carried):
        load, stop = preloaded, start
        latest = len(weights) - (len(carried) - number - 1) if nonempty else len(weights)
        while stop < len(weights) and load + weights[stop] <= capacity and (stop < latest or stop == start):
            load += weights[stop]
            stop += 1
        ranges.append(range(start, stop))
        start = stop
    return ranges
