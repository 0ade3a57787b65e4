"""The contenders of a benchmark: which command runs each, and what each says of itself.

This module starts nothing and measures nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import CommandError, Measurement

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the result is cut."""

    tp: int
    text: tuple[int, ...]
    vision: tuple[int, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """It as distconv is told."""
        return (
            f"layout.tp={self.tp}",
            f"layout.stages.text=[{','.join(map(str, self.text))}]",
            f"layout.stages.vision=[{','.join(map(str, self.vision))}]",
        )


@dataclass(frozen=True, kw_only=True)
class Start:
    """How many processes of distconv are started, and whether by `mpirun`; several others by `torchrun`."""

    count: int
    by_mpi: bool = False

    @property
    def name(self) -> str:
        """It in words."""
        return f"{self.count} process{'es' if self.count > 1 else ''}{' of MPI' if self.by_mpi else ''}"

    @property
    def command(self) -> tuple[str, ...]:
        """What stands before the name of the module that runs."""
        if self.by_mpi:
            mpirun = str(Path(sys.executable).parent / "mpirun")
            return (mpirun, "-n", str(self.count), sys.executable, "-m", "mpi4py")
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.count}")
        return (sys.executable, *(launcher if self.count > 1 else ()))


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a program says of itself: seconds after start-up, and per process the bytes it counted, where it counts.

    `phases`: the seconds of each phase, the longest of all processes; what they leave of the wall time is start-up.
    """

    work: float
    phases: Mapping[str, float] = field(default_factory=dict)
    read: tuple[int, ...] = ()
    written: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One contender: its command, and where the details of a run are found; cases of one `makes` make the same."""

    name: str
    command: tuple[str, ...]
    details: Callable[[Measurement], Details]
    makes: str | None = None


def copy_case(source: Path, target: Path) -> Case:
    """The yardstick for the machine: copy the source as it is."""
    return Case(
        name="cp -r",
        command=("cp", "-r", str(source), str(target)),
        details=lambda measurement: Details(work=measurement.wall),
    )


def plain_case(source: Path, target: Path, layout: Layout) -> Case:
    """The yardstick for the task: convert by loading everything."""
    return Case(
        name="plain converter",
        command=(
            sys.executable,
            str(HERE / "plain_converter.py"),
            str(source),
            str(target),
            f"--tp={layout.tp}",
            f"--text-stages={','.join(map(str, layout.text))}",
            f"--vision-stages={','.join(map(str, layout.vision))}",
        ),
        details=lambda measurement: Details(work=printed_seconds(measurement.output, "converted")),
        makes="megatron",
    )


def dcp_save_case(source: Path, target: Path) -> Case:
    """The yardstick for a DCP: `dcp.save` of the same state dict; its work is the saving alone, not the loading."""
    return Case(
        name="dcp.save",
        command=(sys.executable, str(HERE / "plain_saver.py"), str(source), str(target)),
        details=lambda measurement: Details(work=printed_seconds(measurement.output, "saved")),
        makes="dcp",
    )


def printed_seconds(output: str, done: str) -> float:
    """Find the seconds after start-up in what a plain program printed."""
    found = re.search(rf"^{done} in ([\d.]+) s$", output, re.MULTILINE)
    if not found:
        raise CommandError(f"the program did not say how long it took: {output}")
    return float(found[1])


def distconv_megatron_case(
    source: Path, target: Path, layout: Layout, processes: Start, overrides: Sequence[str], makes: str = "megatron"
) -> Case:
    """Distconv on a number of processes, to a Megatron directory."""
    return _distconv_case(makes, source, target, processes, (*layout.options, *overrides))


def distconv_dcp_case(source: Path, target: Path, processes: Start, overrides: Sequence[str]) -> Case:
    """Distconv on a number of processes, to a DCP with published names."""
    options = ("target_format=dcp", "naming=hf")
    return _distconv_case("dcp", source, target, processes, (*options, *overrides))


def distconv_torch_dist_case(source: Path, target: Path, processes: Start, overrides: Sequence[str]) -> Case:
    """Distconv on a number of processes, to a torch_dist of Megatron-core."""
    return _distconv_case("torch_dist", source, target, processes, ("target_format=torch_dist", *overrides))


def distconv_back_case(
    source: Path, target: Path, processes: Start, overrides: Sequence[str], makes: str = "back"
) -> Case:
    """Distconv on a number of processes, from a result of its own to the Hugging Face directory it was."""
    return _distconv_case(makes, source, target, processes, ("target_format=hf", *overrides))


def distconv_resplit_case(
    source: Path, target: Path, layout: Layout, processes: Start, overrides: Sequence[str]
) -> Case:
    """Distconv on a number of processes, from one Megatron directory to another."""
    return _distconv_case("resplit", source, target, processes, (*layout.options, *overrides))


def _distconv_case(makes: str, source: Path, target: Path, processes: Start, overrides: Sequence[str]) -> Case:
    report = target.with_name(f"report-{makes}-{processes.name.replace(' ', '-')}.json")
    return Case(
        name=f"distconv {makes}, {processes.name}",
        command=(
            *processes.command,
            "-m",
            "distconv",
            "+model=qwen2vl",
            f"source={source}",
            f"target={target}",
            f"report={report}",
            *overrides,
        ),
        details=lambda _: read_report(report),
        makes=makes,
    )


def read_report(path: Path) -> Details:
    """Read what distconv reports of itself: the seconds of its phases are neither start-up nor imports."""
    processes: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["processes"]
    return Details(
        work=max(sum(process["seconds"].values()) for process in processes),
        phases={
            name: max(process["seconds"].get(name, 0) for process in processes)
            for name in dict.fromkeys(name for process in processes for name in process["seconds"])
        },
        read=tuple(process["bytes_read"] for process in processes),
        written=tuple(process["bytes_written"] for process in processes),
    )
