"""Simulate a job of very many processes on headers alone: what it says, asks of the file system, and takes.

    python benchmarks/simulate.py                       1,024 processes, DeepSeek-V3 (671B) and as Kimi-K2 (1T, int4)
    python benchmarks/simulate.py --models deepseekvl2 --processes 512

Runs the real job, from looking to the commit, in three processes: rank 0, one in the middle, and a crowd that stands
for all others. The crowd says what each of them would say, and makes their files; exchanges go through pipes, and are
counted as they would be packed. Files have holes instead of data, and no data is moved. Counted are the exchanges, the
calls on files of rank 0 and of the one in the middle, CPU seconds and memory up to the plan; and from the plan, what
processes and nodes read and write. All files are in one directory, which is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Any

from bench import MIB, machine, table, work_directory
from largest import MODELS, QUANTISED, command_line, configured, write_files

from distconv.runtime.processes import SingleProcess, packed, unpacked

TP, PP, EP = 4, 8, 32
NODE = 8
CROWD = 1
# Calls that move data, or come with it; all others are metadata.
DATA = {"pread", "preadv", "read", "write", "pwrite", "pwritev", "copy_file_range", "stream read", "stream write"}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What was being done, bytes that a process says (in the mean), and bytes that each hears."""

    doing: str
    said: int
    heard: int


class Simulated(SingleProcess):
    """Rank 0 of many, or, with the connection to it, another one."""

    def __init__(self, rank: int, size: int, others: Mapping[int, Connection]) -> None:
        super().__init__()
        self.rank, self.size = rank, size  # type: ignore[misc]
        self._others = others
        self.exchanges: list[Exchange] = []
        self.planned_after: tuple[float, int] | None = None
        self._task: Mapping[str, Any] = {}

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        data = self._told(packed(value) if self.rank == 0 else b"")
        self._log(len(data) if self.rank == 0 else 0, len(data))
        found = unpacked(data)
        self._task = found if isinstance(found, dict) and found.get("task") else {}
        return found

    def collect(self, value: Any) -> list[Any]:
        """Every process's value."""
        said = self.all_of(value)
        data = b""
        if self.rank:
            self._others[0].send_bytes(packed(said))
        else:
            for connection in self._others.values():
                said |= {int(rank): each for rank, each in unpacked(connection.recv_bytes()).items()}
            data = packed([said[rank] for rank in range(self.size)])
        data = self._told(data)
        everyone: list[Any] = unpacked(data)
        self._log(sum(len(packed(each)) for each in everyone) // self.size, len(data))
        return everyone

    def all_of(self, value: Any) -> dict[int, Any]:
        """What is said in the name of this process."""
        return {self.rank: value}

    def _told(self, data: bytes) -> bytes:
        """What rank 0 says to all."""
        if self.rank:
            return self._others[0].recv_bytes()
        for connection in self._others.values():
            connection.send_bytes(data)
        return data

    def _log(self, said: int, heard: int) -> None:
        from distconv.runtime.measurement import peak_resident_bytes  # noqa: PLC0415

        doing = self.progress.beat().doing
        self.exchanges.append(Exchange(doing=doing, said=said, heard=heard))
        if doing == "planning" or self.planned_after is None:
            self.planned_after = time.process_time(), peak_resident_bytes()


class Crowd(Simulated):
    """All ranks but 0 and those that have a connection of their own."""

    def __init__(self, size: int, others: Mapping[int, Connection], missing: int) -> None:
        super().__init__(CROWD, size, others)
        self._ranks = [rank for rank in range(1, size) if rank != missing]
        self.written: dict[int, Any] = {}
        self.plan: Any = None

    def all_of(self, value: Any) -> dict[int, Any]:
        """What each of them says: of a task, its part; of written files, its own."""
        from distconv.formats.registry import tasks  # noqa: PLC0415
        from distconv.runtime.hand_out import attempt_parts  # noqa: PLC0415

        said = {rank: {**value, "rank": rank} for rank in self._ranks}
        if self._task:
            (task,) = (each for each in tasks() if each.__name__ == self._task["task"])
            for rank in self._ranks:
                said[rank]["value"] = attempt_parts(task, self._task["parts"][rank :: self.size], 1)
        elif isinstance(value["value"], dict) and "files" in value["value"]:
            for rank, written in self.written.items():
                content = {"value": written, "rank": rank, "files": list(written)}
                said[rank]["value"] = {**value["value"], **content}
        return said

    def write(self, plan: Any, files: Any, directory: Path, *_: Any) -> Any:  # noqa: ARG002 - as `write_files`
        """In the place of `write_files`: the files of all, as holes."""
        from distconv.formats.records import Written  # noqa: PLC0415
        from distconv.planning.assign import assign  # noqa: PLC0415

        self.plan = plan
        shares = assign(plan.files, self.size)
        for rank in self._ranks:
            for file in shares[rank]:
                path = directory / file.path
                path.parent.mkdir(exist_ok=True)
                with path.open("wb") as stream:
                    stream.truncate(file.nbytes)
            self.written[rank] = {file.path: Written(file.nbytes, None) for file in shares[rank]}
        return self.written[CROWD]


def take_part(rank: int, size: int, options: Mapping[str, Any], others: dict[int, Connection], out: Connection) -> None:
    """The life of a process; what it counted goes to `out`."""
    from unittest.mock import patch  # noqa: PLC0415

    from distconv import job, writing  # noqa: PLC0415
    from distconv.formats.registry import Options  # noqa: PLC0415
    from distconv.models.library import Library  # noqa: PLC0415
    from distconv.observer import Observer  # noqa: PLC0415
    from distconv.tensors import quantised  # noqa: PLC0415
    from distconv.transfer import moves, reading, sinks  # noqa: PLC0415
    from tests.faults.calls import Calls  # noqa: PLC0415

    os.fsync = lambda _: None  # counted, but waited for by nobody
    calls = Calls(str(Path(options["source"]).parent))
    is_crowd = rank == CROWD
    middle = size // 2
    processes = Crowd(size, others, middle) if is_crowd else Simulated(rank, size, others)
    if isinstance(processes, Crowd):
        patches = [patch.object(writing, "write_files", processes.write)]
    else:
        calls.replace()
        patches = [
            patch.object(reading, "read_into", lambda *_: None),
            patch.object(sinks, "read_into", lambda *_: None),
            patch.object(sinks, "write_from", lambda *_: None),
            patch.object(sinks, "copy_in_kernel", lambda *arguments: arguments[-1]),
            patch.object(moves.Moving, "box", lambda *_: 0),
            patch.object(moves.Moving, "run", lambda *_: 0),
            patch.object(quantised.Dequantise, "__call__", lambda *_: None),
        ]
    for each in (*patches, patch.object(job, "check_space", lambda *_: None)):
        each.start()
    job.run_job(Options.from_content(dict(options)), None, Library.of_package(), processes, Observer())
    assert processes.planned_after is not None
    seconds, peak = processes.planned_after
    out.send(
        {
            "exchanges": [vars(each) for each in processes.exchanges],
            "calls": calls.counts,
            "seconds": seconds,
            "peak": peak,
            "plan": shares_of(processes.plan, size) if isinstance(processes, Crowd) else None,
        }
    )


def shares_of(plan: Any, size: int) -> dict[str, list[int]]:
    """What processes write and ask for, and what nodes fetch, in bytes."""
    from distconv.options import InputOutput  # noqa: PLC0415
    from distconv.planning.assign import assign  # noqa: PLC0415
    from distconv.transfer.planned_reads import planned_reads  # noqa: PLC0415

    shares = assign(plan.files, size)
    reads = planned_reads(plan, shares, InputOutput().buffer_bytes, NODE)
    return {
        "written": [sum(file.nbytes for file in share) for share in shares],
        "asked": reads.asked,
        "fetched": reads.fetched,
        "distinct": [reads.distinct],
    }


def simulated(directory: Path, model: str, size: int) -> dict[int, dict[str, Any]]:
    """What rank 0, the crowd and the one in the middle counted, by rank."""
    options = configured(
        f"source={directory}",
        f"target={directory.parent / 'mm'}",
        *(f"layout.{axis}={number}" for axis, number in (("tp", TP), ("pp", PP), ("ep", EP))),
        *(["dtype=bfloat16"] if model in QUANTISED else []),
        "io.checksum=false",
    )
    options.pop("model", None)
    context = get_context("spawn")
    links = {rank: context.Pipe() for rank in (CROWD, size // 2)}
    ends: dict[int, dict[int, Connection]] = {0: {rank: here for rank, (here, _) in links.items()}}
    ends |= {rank: {0: there} for rank, (_, there) in links.items()}
    results = {}
    running = []
    for rank, others in ends.items():
        results[rank], out = context.Pipe(duplex=False)
        running.append(context.Process(target=take_part, args=(rank, size, options, others, out)))
        running[-1].start()
        out.close()
    found = {rank: result.recv() for rank, result in results.items()}
    for process in running:
        process.join()
    return found


def report(name: str, size: int, found: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """What was counted, as text."""
    yield f"{name}: TP {TP}, PP {PP}, EP {EP} on {size} processes, {NODE} on a node\n"
    exchanges = found[0]["exchanges"]
    rows = [("exchange", "times", "a process says, KB", "a process hears, KB")]
    doings = list(dict.fromkeys(each["doing"] for each in exchanges))
    for doing in doings:
        own = [each for each in exchanges if each["doing"] == doing]
        said, heard = (sum(each[key] for each in own) / 1e3 for key in ("said", "heard"))
        rows.append((doing, str(len(own)), f"{said:.1f}", f"{heard:.1f}"))
    total = [sum(each[key] for each in exchanges) / 1e3 for key in ("said", "heard")]
    rows.append(("all", str(len(exchanges)), *(f"{each:.1f}" for each in total)))
    yield table(rows)
    counted = [Counter(found[rank]["calls"]) for rank in (0, size // 2)]
    kinds = sorted({kind for each in counted for kind in each if kind not in DATA})
    rows = [("calls on files", "rank 0", f"rank {size // 2}")]
    rows += [(kind, *(str(each[kind]) for each in counted)) for kind in kinds]
    rows.append(("all of metadata", *(str(sum(each[kind] for kind in kinds)) for each in counted)))
    yield "\n" + table(rows)
    rows = [("GB", "mean", "most", "most / mean", "all", "all / source")]
    plan = found[CROWD]["plan"]
    (distinct,) = plan["distinct"]
    for what, label in (
        ("written", "a process writes"),
        ("asked", "a process asks for"),
        ("fetched", "a node fetches"),
    ):
        sizes = plan[what]
        shown = [f"{each / 1e9:.2f}" for each in (mean(sizes), max(sizes))]
        rows.append(
            (
                label,
                *shown,
                f"{max(sizes) / mean(sizes):.2f}",
                f"{sum(sizes) / 1e9:.0f}",
                f"{sum(sizes) / distinct:.2f}",
            )
        )
    yield "\n" + table(rows)
    yield "\nup to the plan: " + "; ".join(
        f"rank {rank} {found[rank]['seconds']:.1f} CPU s, {found[rank]['peak'] / MIB:.0f} MiB"
        for rank in (0, size // 2)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("Simulate a job of very many processes.", {**MODELS, **QUANTISED})
    parser.set_defaults(models=["deepseekvl2", "kimi"])
    parser.add_argument("--processes", type=int, default=TP * PP * EP, help=f"default {TP * PP * EP}")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    print(machine(), flush=True)
    for model in arguments.models:
        with work_directory(arguments.work) as work:
            published = {**MODELS, **QUANTISED}[model](1)
            write_files(work / "hf", published)
            found = simulated(work / "hf", model, arguments.processes)
        print(
            "",
            json.dumps(found) if arguments.json else "\n".join(report(published.name, arguments.processes, found)),
            sep="\n",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
