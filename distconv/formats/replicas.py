"""Replicas: parts of parameters that training stores more than once, and that must be equal.

Owns the record alone. Compares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from distconv.tensors.stored import Assembled


@dataclass(frozen=True, slots=True)
class Replica:
    """Two tensors that must be equal: `original`, which a plan reads, and `duplicate`, a view of one stored tensor."""

    original: Assembled
    duplicate: Assembled

    @property
    def nbytes(self) -> int:
        """Size in bytes of the duplicate."""
        return self.duplicate.nbytes
