"""The processes and nodes of a plan, for a person.

Owns its wording. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distconv.errors import counted
from distconv.words import binary, table


def process_table(processes: Sequence[Mapping[str, Any]]) -> str:
    """What each process writes and reads, and its projected memory; a row for those that are alike."""
    rows = [["process", "files", "reads", "writes", "projected peak memory"]]
    for alike, count in _runs_of_equal(processes):
        ranks = str(alike["rank"]) if count == 1 else f"{alike['rank']}-{alike['rank'] + count - 1}"
        moved = [binary(alike["bytes_read"]), binary(alike["bytes_written"])]
        rows.append([ranks, str(len(alike["files"])), *moved, binary(alike["projected_peak_bytes"])])
    return table(rows)


def node_words(nodes: Mapping[str, Any]) -> str:
    """What nodes read from the file system."""
    fetched = nodes["bytes_fetched"]
    least, most, whole = (binary(each) for each in (min(fetched), max(fetched), sum(fetched)))
    times = sum(fetched) / max(nodes["bytes_distinct"], 1)
    return (
        f"read from the file system, per node of {counted(nodes['processes_per_node'], 'process', 'processes')}: "
        f"{least if least == most else f'{least} to {most}'}; by all {counted(len(fetched), 'node')} {whole}, "
        f"{times:.2f} times what is there"
    )


def _runs_of_equal(processes: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    runs: list[tuple[Mapping[str, Any], int]] = []
    for each in processes:
        if runs and _load(runs[-1][0]) == _load(each):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((each, 1))
    return runs


def _load(process: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return len(process["files"]), process["bytes_read"], process["bytes_written"], process["projected_peak_bytes"]
