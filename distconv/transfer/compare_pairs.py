"""Comparing pairs of tensors: one process's parts of them, both sides produced block by block.

Owns what is in memory for it: a block of either side for each thread, whatever the sizes of tensors. Writes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from distconv.tensors.compose import renumbered
from distconv.tensors.differences import Difference, difference, together
from distconv.tensors.pairs import PairPart
from distconv.transfer.engine import Shard, Work
from distconv.transfer.files import read_into
from distconv.transfer.means import Means
from distconv.transfer.sinks import Counters

# Blocks whose work is planned together: a few thousand records, of however many bytes.
_PLANNED = 1024


def compare_pairs(parts: Sequence[PairPart], means: Means) -> dict[int, Difference]:
    """The differences of parts of pairs, by the number of the pair; of equal ones none.

    Raises:
        JobError: a read failed.
    """
    found: dict[int, list[Difference]] = {}
    # Both sides together are half of the buffers that a thread has anyway.
    blocks = (each for part in parts for each in part.blocks(means.buffers.lanes.buffer_bytes // 2))
    while several := {_title(each): each for each in islice(blocks, _PLANNED)}:
        sink = _PairSink(several, means.counters)
        means.produce([_work(title, each) for title, each in several.items()], sink)
        for title, different in sink.found.items():
            each = several[title]
            found.setdefault(each.number, []).append(different.moved(each.position))
    return {number: together(differences) for number, differences in found.items()}


def _title(part: PairPart) -> str:
    """A block in messages, where others have the path of a file."""
    return f"{part.pair.name}, from element {part.position:,} on"


def _work(title: str, part: PairPart) -> Work:
    """Both sides of a block as shards of one parameter, which are made one after the other."""
    one, other = part.sides
    second = renumbered(other.tensor, len(one.sources))
    return Work((*one.sources, *other.sources), (Shard(one.tensor, title, 0), Shard(second, title, one.nbytes)))


@dataclass(slots=True)
class _Made:
    """A block in the making: both sides, one after the other, and the bytes of them that are still to come."""

    data: memoryview
    left: int


class _PairSink:
    """Keeps both sides of blocks, whose titles are the paths, until they are complete, and compares them.

    Safe to use from several threads, of which no more blocks are in the making than there are threads.

    `found`: the differences by the title of the block.
    """

    def __init__(self, blocks: Mapping[str, PairPart], counters: Counters) -> None:
        self._blocks, self._counters = blocks, counters
        self._lock = threading.Lock()
        self._made: dict[str, _Made] = {}
        self.found: dict[str, Difference] = {}

    def copy(self, source: int, source_offset: int, path: str, offset: int, nbytes: int, scratch: memoryview) -> None:  # noqa: ARG002 - of the interface
        """Read bytes of an open file."""
        made = self._of(path)
        read_into(source, source_offset, made.data[offset : offset + nbytes])
        self._counters.add(read=nbytes, done=nbytes)
        self._came(path, made, nbytes)

    def put(self, path: str, offset: int, data: memoryview) -> None:
        """Keep bytes."""
        made = self._of(path)
        made.data[offset : offset + len(data)] = data
        self._counters.add(done=len(data))
        self._came(path, made, len(data))

    def _of(self, path: str) -> _Made:
        with self._lock:
            made = self._made.get(path)
            if made is None:
                nbytes = self._blocks[path].nbytes
                made = self._made[path] = _Made(memoryview(bytearray(nbytes)), nbytes)
            return made

    def _came(self, path: str, made: _Made, nbytes: int) -> None:
        with self._lock:
            made.left -= nbytes
            if made.left:
                return
            del self._made[path]
        half = len(made.data) // 2
        found = difference(made.data[:half], made.data[half:], self._blocks[path].pair.dtype)
        if found is not None:
            self.found[path] = found
