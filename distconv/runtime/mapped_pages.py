"""Pages of files that are mapped into this process, which are given back to the system after use.

Owns the calls to the system. The pages of a mapping count as memory of the process until they are needed elsewhere;
whoever goes through a large one gives back what it is done with. Never touches memory that is no mapping of the file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

# With a page that is touched, the system maps those around it that it has in memory: at most those of a huge page.
_WINDOW_BYTES = 2 * 1024 * 1024
_MAPS = Path("/proc/self/maps")


class MappedPages:
    """The mappings of a file as they are now; none where the system does not tell."""

    def __init__(self, path: Path) -> None:
        self._ranges = _ranges(path)
        self._advise = ctypes.CDLL(None).madvise
        self._advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def drop(self, address: int, nbytes: int) -> None:
        """Give back the pages that hold `nbytes` from `address` on, and those that were mapped along with them.

        A later read takes them from the file again. What of them was changed, and is not in the file, is lost.
        """
        for start, end in self._ranges:
            low = max(start, address // _WINDOW_BYTES * _WINDOW_BYTES)
            high = min(end, -(-(address + nbytes) // _WINDOW_BYTES) * _WINDOW_BYTES)
            if low < high:
                # Where it fails, memory is used and nothing is wrong.
                self._advise(low, high - low, mmap.MADV_DONTNEED)


def _ranges(path: Path) -> list[tuple[int, int]]:
    """The address ranges at which a file is mapped."""
    name = os.fsencode(os.path.realpath(path)).replace(b"\n", rb"\012")
    try:
        lines = _MAPS.read_bytes().splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        # Range, permissions, offset, device, inode and, after spaces, the path.
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5] == name:
            low, _, high = fields[0].partition(b"-")
            ranges.append((int(low, 16), int(high, 16)))
    return ranges
