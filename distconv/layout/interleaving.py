"""Cutting weights into consecutive ranges over pipeline ranks with several virtual stages.

Owns the balance of the sums over ranks, and then of single stages. Pure and deterministic, like `partition`, which is
exact for ranks with one stage; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from distconv.layout.partition import even_ranges

_Cost = TypeVar("_Cost", bound=tuple[int, ...])


def interleaved_ranges(weights: Sequence[int], preload: Sequence[int], ranks: int) -> list[range]:
    """One range of items per stage; stage `s` is on rank `s mod ranks` and already has the load `preload[s]`.

    Minimises the load of the heaviest rank, then that of the heaviest stage. Exact for ranks with one stage, and for
    equal weights (otherwise as hard as bin packing); the heaviest rank exceeds the optimum by the heaviest weight at
    most. Time is cubic in the stages at most: for layers, not for files.
    """
    if len(preload) == ranks:
        return even_ranges(weights, preload)
    sums = [0, *accumulate(weights)]

    def stages(cuts: Sequence[int]) -> list[int]:
        return _loads(cuts, sums, preload)

    def by_rank(cuts: Sequence[int]) -> tuple[int, int]:
        loads = _of_ranks(stages(cuts), ranks)
        return max(loads), sum(load * load for load in loads)

    cuts = _descend(_filled(sums, preload, ranks), by_rank, lambda cuts: _of_ranks(stages(cuts), ranks))
    capacity = by_rank(cuts)[0]

    def by_stage(cuts: Sequence[int]) -> tuple[int, int, int]:
        loads = stages(cuts)
        return max(capacity, *_of_ranks(loads, ranks)), max(loads), sum(load * load for load in loads)

    cuts = _descend(cuts, by_stage, stages)
    return [range(start, stop) for start, stop in pairwise(cuts)]


def heaviest(parts: Sequence[range], weights: Sequence[int], preload: Sequence[int], ranks: int) -> tuple[int, int]:
    """The loads of the heaviest rank and of the heaviest stage, given the range of items of each stage."""
    sums = [0, *accumulate(weights)]
    loads = _loads([0, *(part.stop for part in parts)], sums, preload)
    return max(_of_ranks(loads, ranks)), max(loads)


def _loads(cuts: Sequence[int], sums: Sequence[int], preload: Sequence[int]) -> list[int]:
    return [carried + sums[stop] - sums[start] for carried, (start, stop) in zip(preload, pairwise(cuts), strict=True)]


def _of_ranks(loads: Sequence[int], ranks: int) -> list[int]:
    return [sum(loads[rank::ranks]) for rank in range(ranks)]


def _filled(sums: Sequence[int], preload: Sequence[int], ranks: int) -> list[int]:
    """Cuts that raise every rank to a common load, in equal shares over its stages.

    Later stages of a rank compensate the rounding of its earlier ones to whole items.
    """
    lacking = _lacking(_of_ranks(preload, ranks), sums[-1])
    cuts, wanted = [0], 0.0
    for stage in range(len(preload)):
        rank, later = stage % ranks, (len(preload) - stage - 1) // ranks
        stop = cuts[-1]
        if lacking[rank] > 0:
            wanted += lacking[rank] / (later + 1)
            while stop + 1 < len(sums) and sums[stop] + sums[stop + 1] <= 2 * wanted:
                stop += 1
        if stage + 1 == len(preload):
            stop = len(sums) - 1
        lacking[rank] -= sums[stop] - sums[cuts[-1]]
        cuts.append(stop)
    return cuts


def _lacking(carried: Sequence[int], total: int) -> list[float]:
    """The missing load of each rank below a common level, at which the missing loads add up to `total`."""
    ordered = sorted(carried)
    level = next(
        level
        for count in range(1, len(ordered) + 1)
        if (level := (total + sum(ordered[:count])) / count) <= min(ordered[count:], default=level)
    )
    return [max(level - each, 0.0) for each in carried]


def _descend(
    cuts: list[int], cost: Callable[[Sequence[int]], _Cost], loads: Callable[[Sequence[int]], list[int]]
) -> list[int]:
    """Move single items off the heaviest load, each time the move that costs least, until no move reduces the cost."""
    best = cost(cuts)
    while True:
        found = loads(cuts)
        most = max(found)
        sources = [stage for stage in range(len(cuts) - 1) if found[stage % len(found)] == most]
        lowest = min(((cost(moved), moved) for moved in _moves(cuts, sources)), default=None)
        if lowest is None or lowest[0] >= best:
            return cuts
        best, cuts = lowest


def _moves(cuts: Sequence[int], sources: Sequence[int]) -> Iterator[list[int]]:
    """The cuts after a move of one item from a stage of `sources` to another stage, through the stages between them."""
    for source in sources:
        if cuts[source] == cuts[source + 1]:
            continue
        for target in range(len(cuts) - 1):
            low, high, step = (source, target, -1) if source < target else (target, source, 1)
            if low < high:
                yield [*cuts[: low + 1], *(cut + step for cut in cuts[low + 1 : high + 1]), *cuts[high + 1 :]]
