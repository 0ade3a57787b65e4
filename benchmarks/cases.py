"""The contenders of a benchmark: which command runs each, and what each says of itself.

This module starts nothing and measures nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
class Details:
    """What a program says of itself: seconds after start-up, and per process the bytes it counted, where it counts."""

    work: float
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
    source: Path, target: Path, layout: Layout, processes: int, overrides: Sequence[str], makes: str = "megatron"
) -> Case:
    """Distconv on a number of processes, to a Megatron directory."""
    return _distconv_case(makes, source, target, processes, (*layout.options, *overrides))


def distconv_dcp_case(source: Path, target: Path, processes: int, overrides: Sequence[str]) -> Case:
    """Distconv on a number of processes, to a DCP with published names."""
    options = ("target_format=dcp", "naming=hf")
    return _distconv_case("dcp", source, target, processes, (*options, *overrides))


def distconv_torch_dist_case(source: Path, target: Path, processes: int, overrides: Sequence[str]) -> Case:
    """Distconv on a number of processes, to a torch_dist of Megatron-core."""
    return _distconv_case("torch_dist", source, target, processes, ("target_format=torch_dist", *overrides))


def distconv_back_case(
    source: Path, target: Path, processes: int, overrides: Sequence[str], makes: str = "back"
) -> Case:
    """Distconv on a number of processes, from a result of its own to the Hugging Face directory it was."""
    return _distconv_case(makes, source, target, processes, ("target_format=hf", *overrides))


def distconv_resplit_case(source: Path, target: Path, layout: Layout, processes: int, overrides: Sequence[str]) -> Case:
    """Distconv on a number of processes, from one Megatron directory to another."""
    return _distconv_case("resplit", source, target, processes, (*layout.options, *overrides))


def _distconv_case(makes: str, source: Path, target: Path, processes: int, overrides: Sequence[str]) -> Case:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    report = target.with_name(f"report-{makes}-{processes}.json")
    return Case(
        name=f"distconv {makes}, {processes} process{'es' if processes > 1 else ''}",
        command=(
            sys.executable,
            *(launcher if processes > 1 else ()),
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
        read=tuple(process["bytes_read"] for process in processes),
        written=tuple(process["bytes_written"] for process in processes),
    )
