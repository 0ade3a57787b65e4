"""Pointers of Git LFS: what a clone without it has in the place of large files.

Owns how one is recognised, and what to do. Reads nothing.
"""

from __future__ import annotations

POINTER = "a pointer of Git LFS, not the file itself; run git lfs pull"
# The first words of https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md, and as many of them as tell.
_BEGINNING = b"version https://git-lfs"
POINTER_BYTES = 8
# No pointer is as large.
LARGEST_POINTER = 1024


def is_pointer(beginning: bytes) -> bool:
    """Whether a file that begins so is a pointer; the first `POINTER_BYTES` bytes tell."""
    return beginning[:POINTER_BYTES] == _BEGINNING[:POINTER_BYTES] and (
        beginning.startswith(_BEGINNING) or len(beginning) == POINTER_BYTES
    )
