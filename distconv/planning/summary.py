"""The report of a job as plain data, which `report_file` writes and the command line puts in words.

Owns the keys of the report. Writes nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distconv.formats.records import OutputFile
from distconv.formats.registry import Options
from distconv.planning.facts import Facts
from distconv.planning.plan import Planned
from distconv.training.lines import lines_for

# Resident set of an interpreter that has imported torch, as torchrun needs it, and numpy (CPU build of torch 2.13),
# measured.
_INTERPRETER_BYTES = 240 * 1024**2


def plan_report(options: Options, planned: Planned, facts: Facts, result: Path) -> dict[str, Any]:
    """The report of a plan whose files are below the directory `result`; sizes in bytes, and no processes yet."""
    plan = planned.plan
    within = result.relative_to(options.target)
    return {
        "action": options.action,
        "source": str(options.source),
        "text_source": None if options.text_source is None else str(options.text_source),
        "target": str(options.target),
        "target_format": options.target_format,
        "source_format": facts.kind,
        "source_layout": None,
        "reference": None if facts.reference is None else facts.reference.directory,
        "model": facts.model,
        "iteration": within.name or None,
        "continued": None,
        **plan.summary(),
        "casts": planned.casts.summary(),
        "files": [{"path": (within / file.path).as_posix(), "bytes": file.nbytes} for file in plan.files],
        "not_converted": [
            {
                "directory": str(Path(each.tensor.file.path).parent),
                "name": each.tensor.name,
                "bytes": each.tensor.nbytes,
                "reason": each.reason,
            }
            for each in plan.unconverted
        ],
        "not_checked": list(planned.not_checked),
        "notes": [*(f"not checked: {each}" for each in planned.not_checked), *planned.notes],
        "source_names": None,
        **planned.source.summary(),
        "source_record": facts.suggested.where or None,
        "training": _training(planned, facts),
        "processes": [],
        "nodes": None,
    }


def planned_nodes(per_node: int, fetched: Sequence[int], distinct: int, compared: Sequence[int]) -> dict[str, Any]:
    """The nodes of a plan: processes on each, bytes that each reads from the file system, and those that must be read.

    `fetched` and `distinct`: for the files of processes; `compared`: what each process reads of copies in the source.
    """
    starts = range(0, len(compared), per_node)
    of_copies = (sum(compared[start : start + per_node]) for start in starts)
    return {
        "processes_per_node": per_node,
        "bytes_fetched": [sum(each) for each in zip(fetched, of_copies, strict=True)],
        "bytes_distinct": distinct + sum(compared),
    }


def _training(planned: Planned, facts: Facts) -> dict[str, Any] | None:
    """What the configuration of a training says for the layout of the result, if it has one."""
    if planned.layout is None:
        return None
    return lines_for(planned.layout, planned.dialect or "", predicts="predicting" in facts.definition)


def planned_processes(
    shares: Iterable[Sequence[OutputFile]],
    sources: Sequence[Mapping[str, int]],
    compared: Iterable[int],
    buffer_bytes: int,
) -> list[dict[str, Any]]:
    """Per process the paths of its files, the bytes to read and to write, and the projected peak memory in bytes.

    A file that several write is among those of each. `sources`: of each process, path of a source file → bytes to read
    for its files; `compared`: what it reads of copies in the source; `buffer_bytes`: the size in bytes of all buffers
    of a process.
    """
    return [
        {
            "rank": rank,
            "files": [file.path for file in files],
            "sources": [{"path": path, "bytes": nbytes} for path, nbytes in sorted(reads.items())],
            "bytes_read": sum(reads.values()) + beside,
            "bytes_written": sum(file.nbytes for file in files),
            "buffer_bytes": buffer_bytes,
            "projected_peak_bytes": _INTERPRETER_BYTES + buffer_bytes,
        }
        for rank, (files, reads, beside) in enumerate(zip(shares, sources, compared, strict=True))
    ]
