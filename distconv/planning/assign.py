"""The assignment of the files of a plan to processes.

Owns the one rule. Files that are made from the same sources (for Megatron: those of a pipeline rank) read the same
bytes: the rows of a matrix that is cut by columns, and what is on every expert parallel rank. So they go to one
process, or to neighbours, whose node then fetches these bytes once: in the order of their sources files are cut into
consecutive runs of about equal bytes. Where pipeline ranks differ in size, that can load one process more than need be;
then neighbours in groups, as small as keep the balance, share such a run, each with files of many pipeline ranks.

A file has one writer, unless there are fewer files than processes and several may write one: then their entries are
cut, in their order, into runs of about equal bytes. No byte of a file depends on who writes it. Every process gets the
same assignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from distconv.formats.records import FilePart, OutputFile, Plan
from distconv.formats.registry import Options, format_named
from distconv.input_output import NEVER
from distconv.layout.partition import balanced_ranges

# Of the heaviest share, how much more is accepted for that less is read: one part of so many.
_ACCEPTED = 16

Shares = list[Sequence[OutputFile]]


def assign(files: Iterable[OutputFile], processes: int) -> Shares:
    """The files of every process; processes beyond the number of files have none."""
    ordered = _in_order(files)
    groupings = [_in_groups(ordered, processes // size, size) for size in _divisors(processes)]
    fewest = min(map(_idle, groupings))
    busy = [shares for shares in groupings if _idle(shares) == fewest]
    least = min(map(_heaviest, busy))
    return next(shares for shares in busy if _heaviest(shares) * _ACCEPTED <= least * (_ACCEPTED + 1))


def assign_parts(plan: Plan, files: Sequence[OutputFile], processes: int, *, shared: bool) -> Shares:
    """The files of every process, as `assign`; where they are too few and may be `shared`, parts of files."""
    if not shared or not 0 < len(files) < processes:
        return assign(files, processes)
    pieces = [piece for file in _in_order(files) for piece in _pieces(plan, file)]
    runs = balanced_ranges([piece.nbytes for piece in pieces], processes)
    ends = {piece.whole: piece.stop for piece in pieces}
    return [list(_joined(pieces[run.start : run.stop], ends)) for run in runs]


def gains_by_parts(options: Options, files: Sequence[OutputFile], processes: int) -> bool:
    """Whether some process has nothing to write unless others share a file with it, which the options allow."""
    allowed = format_named(options.target_format).shares_files and options.io.shared_files != NEVER
    return allowed and 0 < len(files) < processes


def _pieces(plan: Plan, file: OutputFile) -> Iterator[FilePart]:
    """A file in the smallest parts: what is made from one read has one writer."""
    entries = tuple(plan.entries(file))
    last = {entry.group: number for number, entry in enumerate(entries)}
    start = end = 0
    for number, entry in enumerate(entries):
        end = max(end, last[entry.group])
        if number == end:
            yield _part(file, start, number + 1, sum(each.nbytes for each in entries[start : number + 1]))
            start = number + 1
    if not entries:
        yield _part(file, 0, 0, 0)


def _joined(pieces: Iterable[FilePart], ends: Mapping[OutputFile, int]) -> Iterator[OutputFile]:
    """Consecutive pieces, those of one file as one part, or as the file itself; `ends`: the entries of each file."""
    for file, own in groupby(pieces, key=lambda piece: piece.whole):
        held = list(own)
        start, stop = held[0].start, held[-1].stop
        whole = (start, stop) == (0, ends[file])
        yield file if whole else _part(file, start, stop, sum(piece.nbytes for piece in held))


def _part(file: OutputFile, start: int, stop: int, nbytes: int) -> FilePart:
    return FilePart(
        path=file.path, nbytes=nbytes, order=file.order, batch=file.batch, whole=file, start=start, stop=stop
    )


def _in_groups(ordered: Sequence[OutputFile], groups: int, size: int) -> Shares:
    """The files of processes in groups of a size: a run of files in the order of their sources for each group.

    In a group it is divided in the order of files, so that shares have files of many sources. Shares that begin with
    the same sources, and so read them at the same time, are neighbours.
    """
    shares: Shares = []
    for run in _runs(ordered, groups):
        own = _runs(sorted(run, key=lambda file: file.order), size)
        shares += sorted(filter(None, own), key=lambda share: min(map(_by_source, share)))
        shares += [each for each in own if not each]
    return shares


def _runs(files: Sequence[OutputFile], count: int) -> Shares:
    """Files in a row, cut into runs of about equal bytes."""
    return [files[part.start : part.stop] for part in balanced_ranges([file.nbytes for file in files], count)]


def _divisors(number: int) -> Iterator[int]:
    """The numbers that divide a number, in ascending order."""
    return (each for each in range(1, number + 1) if number % each == 0)


def _in_order(files: Iterable[OutputFile]) -> list[OutputFile]:
    """Files in the order of their sources."""
    return sorted(files, key=_by_source)


def _by_source(file: OutputFile) -> tuple[int, tuple[int, ...]]:
    return file.batch, file.order


def _heaviest(shares: Shares) -> int:
    return max(sum(file.nbytes for file in share) for share in shares)


def _idle(shares: Shares) -> int:
    return sum(not share for share in shares)
