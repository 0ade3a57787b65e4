"""What training stores more than once: tensors that must hold the same elements as others.

Owns the record alone. Compares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from distconv.tensors.stored import Assembled


@dataclass(frozen=True, slots=True)
class Replica:
    """A tensor that is stored once more: `copy`, a view of one stored tensor, must be equal to `original`."""

    original: Assembled
    copy: Assembled

    @property
    def nbytes(self) -> int:
        """Size in bytes of what is stored once more."""
        return self.copy.nbytes
