"""Numbers that a cast has made infinite: counted where they are read, told and refused when all has been moved.

Owns their words, and which are an error: those of float16, whose largest number is 65504. That of the other types is
float32's or almost, and what is beyond it is only told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distconv.errors import SpoiledError, counted, named

# Element type → tensor → how many numbers are infinite after a cast to this type, and were not before.
Overflowed = Mapping[str, Mapping[str, int]]


def all_overflowed(found: Iterable[Overflowed]) -> dict[str, dict[str, int]]:
    """What several have found, as one; a tensor is one's alone."""
    by_type: dict[str, dict[str, int]] = {}
    for each in found:
        for dtype, tensors in each.items():
            by_type.setdefault(dtype, {}).update(tensors)
    return by_type


def told_overflow(found: Iterable[Overflowed], *, allowed: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """What all processes have found, as plain data and in words.

    Raises:
        SpoiledError: numbers that are too large for float16, unless that is `allowed`.
    """
    by_type = all_overflowed(found)
    notes = []
    for dtype, tensors in by_type.items():
        count = counted(sum(tensors.values()), "number")
        what = f"{count} of {counted(len(tensors), 'tensor')} too large for {dtype}: {named(sorted(tensors))}"
        if dtype == "float16" and not allowed:
            raise SpoiledError(
                f"dtype: {what}; dtype=bfloat16 holds them, keep_dtype=[PATTERN] leaves such tensors as they are, "
                "dtype_overflow=allow makes them infinite"
            )
        notes.append(f"now infinite: {what}")
    listed = [
        {"dtype": dtype, "tensor": tensor, "elements": count}
        for dtype, tensors in by_type.items()
        for tensor, count in sorted(tensors.items())
    ]
    return listed, notes
