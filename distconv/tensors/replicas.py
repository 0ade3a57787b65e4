"""What is stored more than once: tensors that must hold the same elements as others.

Owns the record, and how a tensor in several pieces is compared with another. Compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distconv.tensors.compose import box_of
from distconv.tensors.stored import Assembled
from distconv.tensors.virtual import Copy, VirtualTensor


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
