"""The assignment of the files of a plan to processes.

Owns the one rule: files in their order (for Megatron: expert, tensor, then pipeline rank) are cut into consecutive runs
of about equal bytes. So a process owns whole (tp, ep) coordinates if there are enough of them, and the pipeline stages
of a coordinate are divided if there are more processes. A file has one writer, and never depends on its rank. Every
process gets the same assignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distconv.formats.records import OutputFile
from distconv.layout.partition import balanced_ranges


def assign(files: Iterable[OutputFile], processes: int) -> list[Sequence[OutputFile]]:
    """The files of every process; processes beyond the number of files have none."""
    ordered = sorted(files, key=lambda file: file.order)
    parts = balanced_ranges([file.nbytes for file in ordered], processes)
    return [ordered[part.start : part.stop] for part in parts]
