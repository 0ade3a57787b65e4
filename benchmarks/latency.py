"""Measure what a delay of every request of the file system costs: a conversion there and back, with and without it.

    python benchmarks/latency.py                         5 ms, 2 GB, to tp=2 and back, one process
    python benchmarks/latency.py --only dcp --delay-ms 2
    python benchmarks/latency.py io.threads=2            with options of distconv

With and without take turns, on the same files; medians are quoted. Nothing is synchronised to the disk. The delay is
that of `tests/faults/delayed.py`: each call of the operating system takes longer by it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import CHECKOUT, make_source, settle
from cases import Details, read_report
from measure import measure
from synthetic import lookalike

TO = {
    "megatron": ("layout.tp=2",),
    "back": ("target_format=hf",),
    "dcp": ("target_format=dcp",),
    "torch_dist": ("target_format=torch_dist",),
}


@dataclass(frozen=True, kw_only=True)
class Delayed:
    """One run: seconds and CPU seconds of the process, its phases, and its calls by kind."""

    wall: float
    cpu: float
    details: Details
    calls: dict[str, int]

    @property
    def transfer(self) -> float:
        """The seconds in which bytes move."""
        return self.details.phases["transfer"]


def run(seconds: float, work: Path, source: Path, options: Sequence[str]) -> Delayed:
    """Convert to `work/target`, which is removed."""
    target, report = work / "target", work / "report.json"
    places = (f"source={source}", f"target={target}", f"report={report}", "+model=qwen2vl", "io.fsync=false")
    program = (sys.executable, "-m", "tests.faults.delayed", str(seconds), str(work))
    measured = measure((*program, *places, *options), directory=CHECKOUT)
    shutil.rmtree(target)
    calls = json.loads(measured.output.splitlines()[-1])
    return Delayed(wall=measured.wall, cpu=measured.cpu, details=read_report(report), calls=calls)


def compare(name: str, arguments: argparse.Namespace, work: Path, source: Path) -> None:
    """Take turns, and print the ratios."""
    runs: dict[float, list[Delayed]] = {0: [], arguments.delay_ms / 1000: []}
    for turn in range(arguments.repeat + 1):
        for seconds, ended in runs.items():
            found = run(seconds, work, source, (*TO[name], *arguments.options))
            ended.extend([found] if turn else [])
            phases = ", ".join(f"{phase} {took:.2f}" for phase, took in found.details.phases.items())
            print(f"{name}, {seconds * 1000:g} ms: {found.wall:.2f} s ({phases}), CPU {found.cpu:.2f} s", flush=True)
    without, delayed = runs.values()
    ratios = (
        f"{what} {median(values(delayed)) / median(values(without)):.2f}"
        for what, values in (
            ("transfer", lambda ended: [each.transfer for each in ended]),
            ("all of it", lambda ended: [each.wall for each in ended]),
        )
    )
    read, written = (sum(getattr(without[-1].details, each)) for each in ("read", "written"))
    print(f"{name}: {read / 1e6:.0f} MB read, {written / 1e6:.0f} MB written, calls {delayed[-1].calls}")
    print(f"{name}: with / without, {', '.join(ratios)}\n", flush=True)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help="of distconv")
    parser.add_argument("--size-mb", type=int, default=2000)
    parser.add_argument("--delay-ms", type=float, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TO, default=["megatron", "back"])
    parser.add_argument("--work", type=Path, help="where the files are made, such as below /dev/shm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distconv-latency-", dir=arguments.work) as directory:
        work = Path(directory)
        source = work / "source"
        make_source(source, lookalike(arguments.size_mb * 10**6, tied=True))
        settle(source)
        made = work / "megatron"
        if "back" in arguments.only:
            options = (f"source={source}", f"target={made}", *TO["megatron"], "+model=qwen2vl")
            measure((sys.executable, "-m", "distconv", *options), directory=CHECKOUT)
        for name in arguments.only:
            compare(name, arguments, work, made if name == "back" else source)


if __name__ == "__main__":
    main()
