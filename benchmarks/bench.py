"""Measure distconv beside `cp -r`, a plain load-everything converter and `dcp.save`, on one checkpoint, in one run.

    python benchmarks/bench.py                    Qwen2-VL-2B, 4.4 GB
    python benchmarks/bench.py --size-mb 400      a smaller lookalike
    python benchmarks/bench.py --only back        from Megatron to Hugging Face alone; megatron, dcp, resplit, cast,
                                                  fp8, checksum or torch_dist, there and back
    python benchmarks/bench.py --processes 1,mpi8 one process, and eight that mpirun starts
    python benchmarks/bench.py --check-memory     does memory depend on the size of the model?

Every run is printed as it ends, with the seconds of its phases. The cases take turns, and another one begins each
round, so that a drift of the machine hits all alike; one round warms up and does not count; medians are quoted. The
page cache is warm and nothing is synchronised to the disk within the timed part, so the ratios compare the programs and
not the disk. In the warm-up round results of one format are compared by content; what comes back, with what it was made
from; what is split anew, with a conversion straight to that layout. All files it makes are in one directory that it
removes; no others are ever synchronised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from cases import (
    HERE,
    Case,
    Details,
    Layout,
    Start,
    copy_case,
    dcp_save_case,
    distconv_back_case,
    distconv_dcp_case,
    distconv_megatron_case,
    distconv_resplit_case,
    distconv_torch_dist_case,
    plain_case,
)
from measure import CommandError, Measurement, measure
from quantised import write_fp8_twin
from synthetic import PRESETS, Qwen2VLDimensions, checkpoint_bytes, lookalike, write_checkpoint

CHECKOUT = HERE.parent
# What is made of a float32 training state: the same without a cast, and with one.
KEPT, CAST = "kept", "cast"
# What is made of bfloat16 weights, and of the same in fp8.
PLAIN, FP8 = "plain", "fp8"
# What is made without checksums, and with them.
UNSUMMED, SUMMED = "unsummed", "summed"
# What is made of layers that are one tensor.
FROM_STACKS = "torch_dist_back"
MIB = 2**20
MAKES = ("megatron", "dcp", "torch_dist", "back", "resplit", "cast", "fp8", "checksum")
ALONE = Start(count=1)
# The columns of a table.
PHASES = ("start-up", "planning", "transfer", "commit")
MEMORY_SIZES_MB = (1000, 4000)
MEMORY_LIMIT_MIB = 100
MEMORY_GROWTH_MIB = 10  # tables for more tensors; the bytes of the tensors must not show


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measured run."""

    measurement: Measurement
    details: Details

    @property
    def start_up(self) -> float:
        """The seconds that are of no phase: start-up, agreements, and the end of the processes."""
        return self.measurement.wall - sum(self.details.phases.values())


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Medians over the runs of a case; memory in bytes."""

    wall: float
    work: float
    phases: Mapping[str, float]
    cpu: float
    largest_peak: float
    sum_of_peaks: float
    read: tuple[int, ...]
    written: tuple[int, ...]


def even_stages(layers: int, stages: int) -> tuple[int, ...]:
    """Divide layers among stages, the later ones getting one more where it does not come out even."""
    return tuple(layers * (stage + 1) // stages - layers * stage // stages for stage in range(stages))


def run_rounds(cases: Sequence[Case], target: Path, repeat: int, expected: Mapping[str, str]) -> dict[str, list[Run]]:
    """Run all cases in turns: one round that does not count, then `repeat` rounds.

    `expected` are the digests of what is made, where they are known.
    """
    runs: dict[str, list[Run]] = {case.name: [] for case in cases}
    contents: dict[str, dict[str, str]] = {
        case.makes: {"expected": expected[case.makes]} if case.makes in expected else {}
        for case in cases
        if case.makes is not None
    }
    for turn in range(repeat + 1):
        first = turn % len(cases)
        for case in (*cases[first:], *cases[:first]):
            measurement = measure(case.command, directory=CHECKOUT)
            run = Run(measurement=measurement, details=case.details(measurement))
            print(f"{'round ' + str(turn) if turn else 'warm-up'}: {case.name}: {timed(run)}", flush=True)
            if turn:
                runs[case.name].append(run)
            elif case.makes is not None:
                contents[case.makes][case.name] = content_of(target)
            remove(target)
        for makes, digests in contents.items():
            if len(set(digests.values())) > 1:
                raise CommandError(f"the results of {makes} differ: {digests}")
    return runs


def content_of(target: Path) -> str:
    """A digest of the content of a result, computed in a process of its own: this one imports no torch."""
    return measure((sys.executable, str(HERE / "fingerprint.py"), str(target)), directory=CHECKOUT).output


def timed(run: Run) -> str:
    """What one run took, in words."""
    phases = {"start-up": run.start_up, **run.details.phases} if run.details.phases else {}
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items())
    peak = max(run.measurement.peaks, default=0) / MIB
    return f"{run.measurement.wall:.2f} s{f' ({parts})' if parts else ''}, {peak:.0f} MiB"


def remove(target: Path) -> None:
    """Remove a result; what the disk has not got of it yet, it need not get."""
    shutil.rmtree(target)


def settle(directory: Path) -> None:
    """Have the disk get what was made, so that it rests while others are measured; of nobody else's files."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def summarise(runs: Sequence[Run]) -> Summary:
    """Medians; the counted bytes are the same in every run."""
    return Summary(
        wall=median(run.measurement.wall for run in runs),
        work=median(run.details.work for run in runs),
        phases=median_phases(runs),
        cpu=median(run.measurement.cpu for run in runs),
        largest_peak=median(max(run.measurement.peaks, default=0) for run in runs),
        sum_of_peaks=median(sum(run.measurement.peaks) for run in runs),
        read=runs[-1].details.read,
        written=runs[-1].details.written,
    )


def median_phases(runs: Sequence[Run]) -> dict[str, float]:
    """The medians of the phases of a program that tells them, start-up among them."""
    names = runs[-1].details.phases
    start = {"start-up": median(run.start_up for run in runs)} if names else {}
    return {**start, **{name: median(run.details.phases[name] for run in runs) for name in names}}


def torch_alone() -> Summary:
    """An interpreter that imports torch and ends: the part of every Python case that no converter can save."""
    measurements = [measure((sys.executable, "-c", "import torch"), directory=CHECKOUT) for _ in range(3)]
    return summarise([Run(measurement=measurement, details=Details(work=0.0)) for measurement in measurements])


def comparison(summaries: dict[str, Summary], copy: Summary, baseline: Summary, plain: Summary | None) -> str:
    """The table of a comparison with `cp -r` and, where there is one, with the plain program."""
    rows = [
        (
            "case",
            "wall s",
            "work s",
            *PHASES,
            "CPU s",
            "wall / cp",
            "work / cp",
            *(("wall / plain", "work / plain") if plain else ()),
            "peak MiB",
            "above torch",
            "all processes",
            "read MB",
            "written MB",
        )
    ]
    for name, summary in {"cp -r": copy, **summaries}.items():
        rows.append(
            (
                name,
                f"{summary.wall:.2f}",
                f"{summary.work:.2f}",
                *(f"{summary.phases[name]:.2f}" if name in summary.phases else "" for name in PHASES),
                f"{summary.cpu:.2f}",
                f"{summary.wall / copy.wall:.2f}",
                f"{summary.work / copy.work:.2f}",
                *((f"{summary.wall / plain.wall:.2f}", f"{summary.work / plain.work:.2f}") if plain else ()),
                f"{summary.largest_peak / MIB:.0f}",
                "" if summary is copy else f"{(summary.largest_peak - baseline.largest_peak) / MIB:.0f}",
                f"{summary.sum_of_peaks / MIB:.0f}",
                counted(summary.read),
                counted(summary.written),
            )
        )
    return table(rows)


def counted(sizes: Sequence[int]) -> str:
    """Format the bytes counted by each process."""
    return " + ".join(f"{size / 1e6:.0f}" for size in sizes)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows, the first being the header, as a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) + " |" for row in rows]
    rule = "| " + " | ".join(("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:]))) + " |"
    return "\n".join((lines[0], rule, *lines[1:]))


def machine() -> str:
    """One line on what the numbers were measured with."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, torch {version('torch')}"
    )


def read_through(directory: Path) -> int:
    """Read every file, so that the page cache has it; gives the number of bytes."""
    total = 0
    buffer = bytearray(4 * MIB)
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                total += size
    return total


def require_space(directory: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise SystemExit(f"{directory} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: use --work")


def compare(arguments: argparse.Namespace, work: Path) -> int:
    """Measure all cases on one checkpoint and print the tables."""
    load, *_ = os.getloadavg()
    source = arguments.source
    if source is None:
        source = work / "source"
        make_source(source, dimensions_of(arguments))
    size = read_through(source)
    require_space(work, round(1.5 * size))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    layers, depth = config["num_hidden_layers"], config["vision_config"]["depth"]
    layout = Layout(
        tp=arguments.tp,
        text=arguments.text_stages or even_stages(layers, 4),
        vision=arguments.vision_stages or (depth, 0, 0, 0),
    )
    baseline = torch_alone()
    print(f"{size / 1e6:.0f} MB, {layout}, medians of {arguments.repeat}\n{machine()}, load before {load:.1f}")
    print(f"import torch alone: {baseline.wall:.2f} s, {baseline.largest_peak / MIB:.0f} MiB\n")
    more = 2 * len(layout.text)
    other = Layout(tp=1, text=even_stages(layers, more), vision=(depth, *[0] * (more - 1)))
    for cases, expected in comparisons(arguments, work, source, layout, other):
        print_tables(cases, run_rounds(cases, work / "target", arguments.repeat, expected), baseline)
    print(
        "work: wall time after start-up and imports, of dcp.save without reading the source; start-up: what is of no\n"
        "phase, the end of the processes, too; peak: largest resident size of one process; above torch: of it, what\n"
        "an import of torch does not take; all processes: sum of the peaks, launcher included; read, written: as each\n"
        "process counted."
    )
    return 0


def comparisons(
    arguments: argparse.Namespace, work: Path, source: Path, layout: Layout, other: Layout
) -> Iterator[tuple[list[Case], dict[str, str]]]:
    """The cases that take turns, a copy of their source first, and the digests that are known of what they make."""
    target, only, options = work / "target", arguments.only, overrides(arguments)
    there = []
    if "megatron" in only:
        there.append(plain_case(source, target, layout))
        there += [distconv_megatron_case(source, target, layout, count, options) for count in arguments.processes]
    if "dcp" in only:
        there.append(dcp_save_case(source, target))
        there += [distconv_dcp_case(source, target, count, options) for count in arguments.processes]
    if "torch_dist" in only:
        there += [distconv_torch_dist_case(source, target, count, options) for count in arguments.processes]
    if there:
        yield [copy_case(source, target), *there], {}
    if "torch_dist" in only:
        trained = work / "torch_dist"
        require_space(work, round(2.5 * read_through(source)))
        measure(distconv_torch_dist_case(source, trained, ALONE, options).command, directory=CHECKOUT)
        settle(trained)
        back = [distconv_back_case(trained, target, count, options, FROM_STACKS) for count in arguments.processes]
        yield [copy_case(trained, target), *back], {FROM_STACKS: content_of(source)}
        remove(trained)
    trained = work / "megatron"
    back, expected = [], {}
    if "back" in only:
        back += [distconv_back_case(trained, target, count, options) for count in arguments.processes]
        expected["back"] = content_of(source)
    if "resplit" in only:
        back += [distconv_resplit_case(trained, target, other, count, options) for count in arguments.processes]
        measure(distconv_megatron_case(source, target, other, ALONE, options).command, directory=CHECKOUT)
        expected["resplit"] = content_of(target)
        remove(target)
    if back:
        require_space(work, round(2.5 * read_through(source)))
        measure(distconv_megatron_case(source, trained, layout, ALONE, options).command, directory=CHECKOUT)
        settle(trained)
        print(f"back, and resplit: from {layout}\nto {other}\n")
        yield [copy_case(trained, target), *back], expected
        remove(trained)
    if "cast" in only:
        require_space(work, round(4.5 * read_through(source)))
        wide = work / "wide"
        measure(
            distconv_megatron_case(source, wide, layout, ALONE, ["dtype=float32", *options]).command, directory=CHECKOUT
        )
        settle(wide)
        print(f"cast: a float32 training state, {layout}, as float32 (kept) and as bfloat16 (cast)\n")
        cast = []
        for count in arguments.processes:
            cast.append(distconv_back_case(wide, target, count, options, KEPT))
            cast.append(distconv_back_case(wide, target, count, ["dtype=bfloat16", *options], CAST))
        yield [copy_case(wide, target), *cast], {CAST: content_of(source)}
        remove(wide)
    if "fp8" in only:
        require_space(work, round(2.5 * read_through(source)))
        codes = work / "fp8"
        write_fp8_twin(source, codes)
        settle(codes)
        print(f"fp8: {layout}, of bfloat16 (plain) and of fp8 in blocks (fp8), both made bfloat16\n")
        pairs = ((PLAIN, source, options), (FP8, codes, ["dtype=bfloat16", *options]))
        yield [copy_case(source, target), *in_turn(pairs, target, layout, arguments.processes)], {}
    if "checksum" in only:
        print(f"checksum: {layout}, as it is copied in the kernel (unsummed) and with checksums (summed)\n")
        pairs = ((UNSUMMED, source, ["io.checksum=false", *options]), (SUMMED, source, options))
        yield [copy_case(source, target), *in_turn(pairs, target, layout, arguments.processes)], {}


def in_turn(
    pairs: Iterable[tuple[str, Path, Sequence[str]]], target: Path, layout: Layout, processes: Sequence[Start]
) -> list[Case]:
    """Conversions to a Megatron directory, given as what they make, source and options, on numbers of processes."""
    return [
        distconv_megatron_case(source, target, layout, count, options, makes)
        for count in processes
        for makes, source, options in pairs
    ]


def print_tables(cases: Sequence[Case], runs: Mapping[str, Sequence[Run]], baseline: Summary) -> None:
    """One table for each thing that was made."""
    summaries = {name: summarise(measured) for name, measured in runs.items()}
    copy, *_ = summaries.values()
    for makes in dict.fromkeys(case.makes for case in cases if case.makes is not None):
        made = {case.name: summaries[case.name] for case in cases if case.makes == makes}
        first = next(iter(made))
        plain = None if first.startswith("distconv") else made[first]
        print(f"{makes}\n{comparison(made, copy, baseline, plain)}\n", flush=True)
    for one, other, counted in ((KEPT, CAST, "read"), (PLAIN, FP8, "written"), (UNSUMMED, SUMMED, "written")):
        print_ratios(cases, summaries, one, other, counted)


def print_ratios(cases: Sequence[Case], summaries: Mapping[str, Summary], one: str, other: str, counted: str) -> None:
    """What a computation costs for each byte, where there are cases with and without it."""
    without, computed = ([summaries[case.name] for case in cases if case.makes == makes] for makes in (one, other))
    for plain, made in zip(without, computed, strict=True):
        ratio = made.work / sum(getattr(made, counted)) * sum(getattr(plain, counted)) / plain.work
        print(f"{other} / {one}, work per byte {counted}, {len(plain.read)} process(es): {ratio:.2f}")
    if computed:
        print(flush=True)


def check_memory(arguments: argparse.Namespace, work: Path) -> int:
    """Convert a small and a large checkpoint on one process, to ranks, to torch_dist and back; compare the peaks."""
    baseline = torch_alone()
    rows = [("case", "source MB", "peak MiB", "above torch")]
    peaks: dict[str, list[float]] = {}
    source, target, saved = work / "source", work / "target", work / "torch_dist"
    options = overrides(arguments)
    for megabytes in MEMORY_SIZES_MB:
        dimensions = lookalike(megabytes * 10**6, tied=True)
        require_space(work, round(3.5 * checkpoint_bytes(dimensions)))
        make_source(source, dimensions)
        layout = Layout(
            tp=arguments.tp,
            text=even_stages(dimensions.layers, 4),
            vision=(dimensions.vision_layers, 0, 0, 0),
        )
        for case, made in (
            (distconv_megatron_case(source, target, layout, ALONE, options), target),
            (distconv_torch_dist_case(source, saved, ALONE, options), saved),
            (distconv_back_case(saved, target, ALONE, options, FROM_STACKS), target),
        ):
            peak = measure(case.command, directory=CHECKOUT).peaks[0]
            above = (peak - baseline.largest_peak) / MIB
            peaks.setdefault(case.name, []).append(above)
            rows.append((case.name, f"{checkpoint_bytes(dimensions) / 1e6:.0f}", f"{peak / MIB:.0f}", f"{above:.0f}"))
            if made is target:
                remove(target)
        remove(saved)
        remove(source)
    print(f"{machine()}\nimport torch alone: {baseline.largest_peak / MIB:.0f} MiB\n")
    print(table(rows))
    good = all(
        max(found) <= MEMORY_LIMIT_MIB and max(found) - min(found) <= MEMORY_GROWTH_MIB for found in peaks.values()
    )
    print(
        f"\n{'good' if good else 'TOO MUCH'}: at most {MEMORY_LIMIT_MIB} MiB above torch are allowed, "
        f"and a difference of {MEMORY_GROWTH_MIB} MiB"
    )
    return 0 if good else 1


def make_source(source: Path, dimensions: Qwen2VLDimensions) -> None:
    """Write the synthetic checkpoint; it and one result have to fit."""
    require_space(source.parent, round(2.5 * checkpoint_bytes(dimensions)))
    write_checkpoint(source, dimensions)
    settle(source)


def dimensions_of(arguments: argparse.Namespace) -> Qwen2VLDimensions:
    """The synthetic model that the command line asks for."""
    if arguments.size_mb is None:
        return PRESETS["2b"]
    return lookalike(arguments.size_mb * 10**6, tied=True)


def overrides(arguments: argparse.Namespace) -> list[str]:
    """The settings of distconv that the command line asks for."""
    return ["io.fsync=false", *arguments.override]


@contextlib.contextmanager
def work_directory(parent: Path | None) -> Iterator[Path]:
    """A directory for everything that is made here; it goes when the run ends, is interrupted or terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="distconv-bench-", dir=parent) as directory:
        yield Path(directory)


def starts(text: str) -> tuple[Start, ...]:
    """Read `1,2,mpi8`."""
    return tuple(Start(count=int(each.removeprefix("mpi")), by_mpi=each.startswith("mpi")) for each in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Read `7,7,7,7`."""
    return tuple(int(number) for number in text.split(",") if number)


def absolute(text: str) -> Path:
    """A path as the commands see it, which run in another directory."""
    return Path(text).resolve()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure distconv beside cp -r and a plain converter.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--size-mb", type=int, help="a lookalike of about this size instead of Qwen2-VL-2B")
    source.add_argument("--source", type=absolute, help="a Qwen2-VL checkpoint directory that is there already")
    parser.add_argument("--tp", type=int, default=2, help="tensor-parallel size (default 2)")
    parser.add_argument("--text-stages", type=numbers, metavar="N,N,...", help="default: four stages, alike")
    parser.add_argument("--vision-stages", type=numbers, metavar="N,N,...", help="default: all on the first stage")
    parser.add_argument(
        "--processes",
        type=starts,
        default=starts("1,2,4"),
        metavar="N,N,...",
        help="of distconv, started by torchrun; mpiN: by mpirun (1,2,4)",
    )
    parser.add_argument("--repeat", type=int, default=3, help="rounds that count (default 3)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=MAKES,
        default=MAKES,
        help="what to measure (default: all); resplit: to no tensor parallelism and twice the stages; "
        "cast: from float32 to bfloat16; fp8: from fp8 in blocks to bfloat16",
    )
    parser.add_argument("--work", type=absolute, help="where to make the temporary directory (default: the system's)")
    parser.add_argument("--check-memory", action="store_true", help="measure memory on two sizes instead")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="a setting of distconv")
    arguments = parser.parse_args(argv)
    with work_directory(arguments.work) as work:
        try:
            return check_memory(arguments, work) if arguments.check_memory else compare(arguments, work)
        except CommandError as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
