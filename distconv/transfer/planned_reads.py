"""What a plan reads: the bytes that processes ask for, and those that a node fetches from the file system.

Owns the counting of the very steps that will run. What several processes of a node read of one file, they read at about
the same time, in the order of the source, so that the node's page cache fetches it once: whole pages, and behind each
range what the system reads ahead. Pure: reads nothing, and never decides who reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distconv.formats.records import Entry, OutputFile, Plan
from distconv.runtime.lanes import Lanes
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import SourceFile, StoredTensor
from distconv.tensors.virtual import Index
from distconv.transfer.batches import batches
from distconv.transfer.lower import buffer_for, lower
from distconv.transfer.steps import CopyRun, Step, bytes_by_operand

# What Linux reads ahead of a program that reads a file in its order, unless an administrator says otherwise.
_READ_AHEAD_BYTES = 128 * 1024
_PAGE_BYTES = 4096

# A range of bytes of an operand, from its first byte in the file: number of the operand, whether it is of its scales,
# start and stop.
_Part = tuple[int, bool, int, int]
_Range = tuple[int, int]
# What the steps of a group follow from: its tables, by `id`, and how each source is read and stored, with its shape.
_Table = tuple[tuple[int, ...], tuple[tuple[str, str, Index], ...]]
_Ranges = dict[SourceFile, list[_Range]]


@dataclass(frozen=True, kw_only=True)
class PlannedReads:
    """The bytes that each process asks for, that each node fetches, and that a single node of all would fetch.

    `sources`: of each process, path of a source file → bytes. Where nodes are not known, `fetched` is empty and
    `distinct` is 0.
    """

    sources: list[Mapping[str, int]]
    fetched: list[int]
    distinct: int

    @property
    def asked(self) -> list[int]:
        """The bytes that each process asks for."""
        return [sum(each.values()) for each in self.sources]


def planned_reads(
    plan: Plan, shares: Sequence[Sequence[OutputFile]], lanes: Lanes, per_node: int | None = None
) -> PlannedReads:
    """The reads of processes, given their shares of the files; of consecutive ones, so many are on a node."""
    counting = _Counting(plan, lanes)
    if per_node is None:
        return PlannedReads(sources=[counting.asked(files) for files in shares], fetched=[], distinct=0)
    sources: list[Mapping[str, int]] = []
    fetched: list[int] = []
    everything: _Ranges = {}
    for start in range(0, len(shares), per_node):
        ranges: _Ranges = {}
        sources += [counting.asked(files, ranges) for files in shares[start : start + per_node]]
        fetched.append(_fetched(ranges))
        for file, found in ranges.items():
            everything.setdefault(file, []).extend(_united(found))
    return PlannedReads(sources=sources, fetched=fetched, distinct=_fetched(everything))


class _Counting:
    """The counting of what a plan reads.

    Tables that processes share are lowered once. They are identified by `id`, as the plan keeps them alive and their
    hash would cover every copy.
    """

    def __init__(self, plan: Plan, lanes: Lanes) -> None:
        self._plan, self._lanes = plan, lanes
        self._known: dict[_Table, tuple[Mapping[int, int], list[_Part]]] = {}

    def asked(self, files: Sequence[OutputFile], ranges: _Ranges | None = None) -> Counter[str]:
        """The bytes that a process asks for which writes these files, by the path of the source file.

        The ranges that hold them are added to `ranges`.
        """
        asked: Counter[str] = Counter()
        for batch in batches(self._plan, files):
            for group in batch.together():
                entries = [entry for _, entry in group]
                by_operand, parts = self._of(entries)
                low_rank = entries[0].low_rank
                factors = () if low_rank is None else (*low_rank.a.sources, *low_rank.b.sources)
                for operand, nbytes in by_operand.items():
                    asked[entries[0].sources[operand].file.path] += nbytes
                for each in factors:
                    asked[each.file.path] += each.nbytes
                if ranges is None:
                    continue
                for operand, of_scales, start, stop in parts:
                    _put(ranges, _held(entries[0].sources[operand], of_scales=of_scales), start, stop)
                for each in factors:
                    _put(ranges, each, 0, each.nbytes)
        return asked

    def _of(self, entries: Sequence[Entry]) -> tuple[Mapping[int, int], list[_Part]]:
        """The bytes of each source that are asked for to make entries of one group, and the parts that hold them."""
        tensors, sources = [entry.tensor for entry in entries], entries[0].sources
        key = tuple(map(id, tensors)), tuple((source.read_as, source.stored_as, source.shape) for source in sources)
        if key not in self._known:
            shapes, types = [source.shape for source in sources], [source.read_as for source in sources]
            buffer_bytes, dtype = buffer_for(tensors, shapes, self._lanes), tensors[0].dtype
            steps = list(lower(tensors, shapes, buffer_bytes, types))
            by_operand = bytes_by_operand(steps, lambda operand, nbytes: sources[operand].stored_bytes(nbytes, dtype))
            self._known[key] = by_operand, list(_parts(steps, sources, ITEM_SIZE[dtype]))
        return self._known[key]


def _parts(steps: Iterable[Step], sources: Sequence[StoredTensor], item_size: int) -> Iterator[_Part]:
    """The parts of sources that steps read, of which each element takes so many bytes in what is made."""
    elements: dict[int, list[_Range]] = {}
    for step in steps:
        for read in [step] if isinstance(step, CopyRun) else step.reads:
            offset = read.source_offset if isinstance(read, CopyRun) else read.offset
            elements.setdefault(read.operand, []).append((offset // item_size, (offset + read.nbytes) // item_size))
    for operand, ranges in elements.items():
        source = sources[operand]
        codes, scales = _plain(source, ranges) if source.quantised is None else _quantised(source, ranges)
        yield from ((operand, False, start, stop) for start, stop in _united(codes))
        yield from ((operand, True, start, stop) for start, stop in _united(scales))


def _plain(source: StoredTensor, elements: Iterable[_Range]) -> tuple[list[_Range], list[_Range]]:
    """The bytes of ranges of elements, which need no scales."""
    size = ITEM_SIZE[source.dtype]
    return [(start * size, stop * size) for start, stop in elements], []


def _quantised(source: StoredTensor, elements: Iterable[_Range]) -> tuple[list[_Range], list[_Range]]:
    """The bytes of codes, and those of scales, that ranges of elements need."""
    # Here, since whoever reads nothing of the kind needs no numpy.
    from distconv.tensors.quantised import boxes  # noqa: PLC0415

    needed = [box for start, stop in elements for box in boxes(source, start, stop - start)]
    codes = [(box.code_offset, box.code_offset + box.code_bytes) for box in needed]
    return codes, [(box.scale_offset, box.scale_offset + box.scale_bytes) for box in needed]


def _held(source: StoredTensor, *, of_scales: bool) -> StoredTensor:
    """The stored tensor that a part is of."""
    if not of_scales:
        return source
    assert source.quantised is not None
    return source.quantised.scales


def _put(ranges: _Ranges, source: StoredTensor, start: int, stop: int) -> None:
    ranges.setdefault(source.file, []).append((source.offset + start, source.offset + stop))


def _fetched(ranges: _Ranges) -> int:
    """The bytes of files that are fetched to read ranges of them: whole pages, and what is read ahead."""
    total = 0
    for file, found in ranges.items():
        for start, stop in _united(found):
            total += min(_end(stop), file.size) - start // _PAGE_BYTES * _PAGE_BYTES
    return total


def _end(stop: int) -> int:
    """Where the page ends in which reading ahead of a range ends."""
    return -(-(stop + _READ_AHEAD_BYTES) // _PAGE_BYTES) * _PAGE_BYTES


def _united(ranges: Iterable[_Range]) -> Iterator[_Range]:
    """The ranges in order, each byte once; where what is read ahead of one reaches the next, they are one."""
    united: _Range | None = None
    for start, stop in sorted(ranges):
        if united is not None and start // _PAGE_BYTES * _PAGE_BYTES <= _end(united[1]):
            united = united[0], max(united[1], stop)
        else:
            if united is not None:
                yield united
            united = start, stop
    if united is not None:
        yield united
