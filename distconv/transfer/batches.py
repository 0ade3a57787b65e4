"""Batches: the files of one process, grouped so that shards of one parameter are produced from one read.

Owns the grouping by `OutputFile.batch` (for Megatron: the pipeline rank) and `Entry.group`: the shards of a parameter
for several tensor and expert parallel ranks share their reads. Pure: the caller gives the offsets in files.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distconv.formats.records import Entry, OutputFile, Plan
from distconv.runtime.lanes import Lanes
from distconv.tensors.virtual import Index
from distconv.transfer.engine import Shard, Work
from distconv.transfer.lower import buffer_for, lower
from distconv.transfer.steps import bytes_read


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Files that a process writes together, with their entries."""

    files: Mapping[OutputFile, tuple[Entry, ...]]

    def together(self) -> Iterator[list[tuple[OutputFile, Entry]]]:
        """The groups of entries that share their reads, with the files of the entries."""
        groups: dict[Hashable, list[tuple[OutputFile, Entry]]] = {}
        for file, entries in self.files.items():
            for entry in entries:
                groups.setdefault(entry.group, []).append((file, entry))
        yield from groups.values()

    def work(self, paths: Mapping[OutputFile, str], offsets: Mapping[tuple[OutputFile, str, str], int]) -> list[Work]:
        """The batch as work for the engine.

        `paths`: the paths of the files; `offsets`: (file, key, name) of an entry → its file offset in bytes.
        """
        return [
            Work(
                group[0][1].sources,
                tuple(
                    Shard(
                        entry.tensor,
                        paths[file],
                        offsets[file, entry.key, entry.name],
                        f"{file.path}: {entry.title}",
                    )
                    for file, entry in group
                ),
                group[0][1].low_rank,
            )
            for group in self.together()
        ]


def batches(plan: Plan, files: Sequence[OutputFile]) -> Iterator[Batch]:
    """The files of a process, divided into batches."""
    for batch in sorted({file.batch for file in files}):
        yield Batch(files={file: tuple(plan.entries(file)) for file in files if file.batch == batch})


def planned_reads(plan: Plan, shares: Iterable[Sequence[OutputFile]], lanes: Lanes) -> list[int]:
    """The bytes that every process reads from the source, given its share of the files.

    Tables that processes share are lowered once. They are identified by `id`, as `plan` keeps them alive and their hash
    would cover every copy.
    """
    known: dict[tuple[tuple[int, ...], tuple[tuple[str, str, Index], ...]], int] = {}

    def of_group(group: Sequence[tuple[OutputFile, Entry]]) -> int:
        tensors = [entry.tensor for _, entry in group]
        sources = group[0][1].sources
        key = tuple(map(id, tensors)), tuple((source.read_as, source.stored_as, source.shape) for source in sources)
        if key not in known:
            shapes, types = [source.shape for source in sources], [source.read_as for source in sources]
            steps = list(lower(tensors, shapes, buffer_for(tensors, shapes, lanes), types))
            dtype = tensors[0].dtype
            known[key] = bytes_read(steps, lambda operand, nbytes: sources[operand].stored_bytes(nbytes, dtype))
        low_rank = group[0][1].low_rank
        return known[key] + (0 if low_rank is None else low_rank.nbytes)

    return [sum(of_group(group) for batch in batches(plan, files) for group in batch.together()) for files in shares]
