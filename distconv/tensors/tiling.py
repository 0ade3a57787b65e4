"""Whether the boxes of a table tile its tensor: each element has one source, or has none.

Owns the count of those without, and the refusal of two. Integer arithmetic on tuples, like `virtual`; never data.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from distconv.tensors.boxes import most_places, overlap
from distconv.tensors.virtual import Copy, VirtualTensor


def gaps(tensor: VirtualTensor) -> int:
    """Number of elements without a source.

    Raises:
        ValueError: two copies write the same element.
    """
    groups = [list(tensor.copies)]
    while groups:
        group = groups.pop()
        if len(group) > 1:
            apart = _apart(group)
            groups += apart
            if not apart:
                _check_disjoint(group)
    return tensor.elements - sum(prod(copy.shape) for copy in tensor.copies)


def _apart(copies: Sequence[Copy]) -> list[list[Copy]]:
    """The copies in groups with no place in common along some dim; empty if there is no such dim.

    Most tables are grids, which fall apart dim by dim: that costs far less than to compare all that lies side by side.
    """
    for dim in range(len(copies[0].target_start)):
        groups: list[list[Copy]] = []
        end = 0
        for copy in sorted(copies, key=lambda each: each.target_start[dim]):
            start = copy.target_start[dim]
            if not groups or start >= end:
                groups.append([])
            groups[-1].append(copy)
            end = max(end, start + copy.shape[dim])
        if len(groups) > 1:
            return groups
    return []


def _check_disjoint(copies: Sequence[Copy]) -> None:
    """Raise `ValueError` where two copies write the same element."""
    active: list[Copy] = []
    along = most_places(copies)
    for copy in sorted(copies, key=lambda each: (each.target_start[along:], each.target_start)):
        if copy.target_start:
            start = copy.target_start[along]
            active = [other for other in active if other.target_start[along] + other.shape[along] > start]
        for other in active:
            if overlap(copy, other) is not None:
                raise ValueError(f"two sources for the box at {list(copy.target_start)} of shape {list(copy.shape)}")
        active.append(copy)
