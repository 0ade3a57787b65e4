"""The assignment of the files of a plan to processes.

Owns the one rule. Files that are made from the same sources (for Megatron: those of a pipeline rank) read the same
bytes: the rows of a matrix that is cut by columns, and what is on every expert parallel rank. So they go to one
process, or to neighbours, whose node then fetches these bytes once: in the order of their sources files are cut into
consecutive runs of about equal bytes. Where pipeline ranks differ in size, that can load one process more than need be;
then neighbours in groups, as small as keep the balance, share such a run, each with files of many pipeline ranks.

A file has one writer, and never depends on its rank. Every process gets the same assignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from distconv.formats.records import OutputFile
from distconv.layout.partition import balanced_ranges

# Of the heaviest share, how much more is accepted for that less is read: one part of so many.
_ACCEPTED = 16

Shares = list[Sequence[OutputFile]]


def assign(files: Iterable[OutputFile], processes: int) -> Shares:
    """The files of every process; processes beyond the number of files have none."""
    ordered = sorted(files, key=_by_source)
    groupings = [_in_groups(ordered, processes // size, size) for size in _divisors(processes)]
    fewest = min(map(_idle, groupings))
    busy = [shares for shares in groupings if _idle(shares) == fewest]
    least = min(map(_heaviest, busy))
    return next(shares for shares in busy if _heaviest(shares) * _ACCEPTED <= least * (_ACCEPTED + 1))


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


def _by_source(file: OutputFile) -> tuple[int, tuple[int, ...]]:
    return file.batch, file.order


def _heaviest(shares: Shares) -> int:
    return max(sum(file.nbytes for file in share) for share in shares)


def _idle(shares: Shares) -> int:
    return sum(not share for share in shares)
