"""Batches: the files of one process, grouped so that shards of one parameter are produced from one read.

Owns the grouping by `OutputFile.batch` (for Megatron: the pipeline rank) and `Entry.group`: the shards of a parameter
for several tensor and expert parallel ranks share their reads. Pure: the caller gives the offsets in files.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distconv.formats.records import Entry, OutputFile, Plan, entries_of
from distconv.transfer.engine import Shard, Work


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Files, or parts of files, that a process writes together, with their entries."""

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
        yield Batch(files={file: entries_of(plan, file) for file in files if file.batch == batch})
