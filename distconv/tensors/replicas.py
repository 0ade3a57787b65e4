"""What is stored more than once: tensors that must hold the same elements as others.

Owns the record, and how a tensor in several pieces is compared with another. Compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distconv.tensors.compose import box_of
from distconv.tensors.stored import Assembled
from distconv.tensors.virtual import Copy, VirtualTensor, concat, narrow, zeros


@dataclass(frozen=True, slots=True)
class Replica:
    """A tensor that is stored once more: `copy`, a view of one stored tensor, must be equal to `original`.

    `reason` says in words why, and what to do where they differ.
    """

    original: Assembled
    copy: Assembled
    reason: str = "ranks that hold the same parameter must agree"

    @property
    def nbytes(self) -> int:
        """Size in bytes of what is stored once more."""
        return self.copy.nbytes


def replicas_of(original: Assembled, copy: Assembled, reason: str) -> Iterator[Replica]:
    """The replicas, one for each stored box, that are all equal where a copy equals an original of its shape."""
    for box in copy.tensor.copies:
        origin = (0,) * len(box.shape)
        view = VirtualTensor(copy.tensor.dtype, box.shape, (Copy(0, box.source_start, origin, box.shape, box.dims),))
        yield Replica(
            Assembled(original.sources, box_of(original.tensor, box.target_start, box.shape)),
            Assembled((copy.sources[box.operand],), view),
            reason,
        )


def as_padding(rows: Assembled) -> Iterator[Replica]:
    """The replicas that are equal where rows are padding: all equal to the first, or a single one zeros."""
    table = rows.tensor
    first, count = narrow(table, 0, 0, 1), table.shape[0]
    original, copy = zeros(table.dtype, first.shape), first
    if count > 1:
        original, copy = concat([first] * (count - 1)), narrow(table, 0, 1, count - 1)
    yield from replicas_of(Assembled(rows.sources, original), Assembled(rows.sources, copy), "padding is equal")
