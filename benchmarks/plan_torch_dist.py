"""Measure planning from and to torch_dist checkpoints of DeepSeek-V3, 671B, from headers alone.

    python benchmarks/plan_torch_dist.py                  to torch_dist, and from those of distconv and Megatron-core
    python benchmarks/plan_torch_dist.py --processes 64   for another number of processes

Makes the files for all layers, and for a half and a quarter of them, with headers and holes instead of data, and
measures in fresh processes what those of a job do before bytes move: rank 0 reads the headers (the chunks in `.distcp`
files are looked up by all processes; here one looks up all of them) and tells what they say, another one hears it; both
plan, and derive their shares. Rank 0 also makes `.metadata` of a torch_dist result. The exit status is 1 if planning
takes more than is allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import MIB, machine, table, work_directory
from largest import (
    CHECKOUT,
    EP,
    FRACTIONS,
    HERE,
    TP,
    Costs,
    Stopwatch,
    command_line,
    configured,
    excesses,
    growth_problems,
    layout_options,
    representative,
    say_verdict,
    write_files,
)
from measure import CommandError, measure
from torch_dist_headers import FORMS, PP, deepseek_v3

if TYPE_CHECKING:
    from distconv.formats.registry import Options
    from distconv.planning.facts import Facts
    from distconv.planning.plan import Planned
    from distconv.runtime.hand_out import HandOut

SECONDS_ALLOWED = 2.5
PUBLISHED = "published"
# By the format of the result: its options.
TARGETS = {
    "torch_dist": ["target_format=torch_dist"],
    "hf": ["target_format=hf"],
    "megatron": layout_options(PP),
}


@dataclass(frozen=True, kw_only=True)
class Planning(Costs):
    """What there was to plan: the files of the result, and their entries."""

    files: int
    entries: int


def make_sources(directory: Path, divisor: int) -> None:
    """Write a published directory, and the checkpoints that it becomes, of so many of the layers."""
    from distconv.formats.dcp.plan import DcpPlan  # noqa: PLC0415
    from distconv.planning.plan import plan_job  # noqa: PLC0415

    write_files(directory / PUBLISHED, deepseek_v3(divisor))
    options = _options(directory / PUBLISHED, "torch_dist")
    planned = plan_job(options, _look(options))
    assert isinstance(planned.plan, DcpPlan)
    for name, write in FORMS.items():
        write(directory / name, planned.plan, planned.files)


def measure_first(source: Path, target: str, processes: int) -> Planning:
    """The costs of rank 0, in this process, which has done nothing else yet; what it tells is written to a file."""
    from distconv.runtime.collection import uncollected  # noqa: PLC0415
    from distconv.runtime.hand_out import here  # noqa: PLC0415
    from distconv.runtime.processes import packed  # noqa: PLC0415

    options, watch = _options(source, target), Stopwatch()

    def hand_out(task: Any, parts: Sequence[Any]) -> list[Any]:
        return list(watch.timed("chunks", lambda: here(task, parts)))

    with uncollected():
        facts = watch.timed("headers", lambda: _look(options, hand_out))
        chunks = watch.seconds.setdefault("chunks", 0.0)
        watch.seconds["headers"] -= chunks
        shared = watch.timed("telling", lambda: packed(facts.to_json()))
        planned = _plan(watch, options, facts)
    _share(watch, options, planned, processes)
    # What rank 0 makes of the result when all have written: the metadata of a torch_dist one.
    watch.timed("beside", planned.files.beside)
    _told(source, target).write_bytes(shared)
    return _costs(watch, planned, len(shared))


def measure_other(source: Path, target: str, processes: int) -> Planning:
    """The costs of any other rank, in this process, which has done nothing else yet."""
    from distconv.planning.facts import Facts  # noqa: PLC0415
    from distconv.runtime.collection import uncollected  # noqa: PLC0415
    from distconv.runtime.processes import unpacked  # noqa: PLC0415

    options, watch = _options(source, target), Stopwatch()
    shared = _told(source, target).read_bytes()
    with uncollected():
        facts = watch.timed("hearing", lambda: Facts.from_json(unpacked(shared)))
        planned = _plan(watch, options, facts)
    _share(watch, options, planned, processes)
    return _costs(watch, planned, len(shared))


def _plan(watch: Stopwatch, options: Options, facts: Facts) -> Planned:
    from distconv.planning.plan import plan_job  # noqa: PLC0415

    planned: Planned = watch.timed("planning", lambda: plan_job(options, facts))
    return planned


def _share(watch: Stopwatch, options: Options, planned: Planned, processes: int) -> None:
    from distconv.planning.assign import assign  # noqa: PLC0415
    from distconv.transfer.planned_reads import planned_reads  # noqa: PLC0415

    shares = watch.timed("assigning", lambda: assign(planned.plan.files, processes))
    watch.timed("own share", lambda: planned_reads(planned.plan, shares[:1], options.io.lanes(cores=1)))


def _costs(watch: Stopwatch, planned: Planned, shared_bytes: int) -> Planning:
    from distconv.runtime.measurement import peak_resident_bytes  # noqa: PLC0415

    peak = peak_resident_bytes()
    assert "torch" not in sys.modules
    plan = planned.plan
    return Planning(
        seconds=watch.seconds,
        peak_bytes=peak,
        shared_bytes=shared_bytes,
        files=len(plan.files),
        entries=sum(1 for file in plan.files for _ in plan.entries(file)),
    )


def _options(source: Path, target: str) -> Options:
    from distconv.formats.registry import Options  # noqa: PLC0415

    given = [f"source={source}", f"target={source.parent / 'unused'}", *TARGETS[target]]
    if source.name != PUBLISHED:
        given.append(f"reference={source.parent / PUBLISHED}")
    return Options.from_content(configured(*given))


def _look(options: Options, hand_out: HandOut | None = None) -> Facts:
    from distconv.models.library import Library  # noqa: PLC0415
    from distconv.planning.look import look  # noqa: PLC0415
    from distconv.runtime.hand_out import here  # noqa: PLC0415

    return look(options, None, Library.of_package(), hand_out or here)


def _told(source: Path, target: str) -> Path:
    return source.parent / f"{source.name}-{target}.told"


ROLES = {"rank 0": measure_first, "another rank": measure_other}
# Source, target, divisor of the layers, and role.
Name = tuple[str, str, int, str]


def measured(directory: Path, divisor: int, processes: int, repeat: int) -> Iterator[tuple[Name, Planning]]:
    """The costs of all jobs with sources in a directory, in processes of their own, by job and role."""
    jobs = [(PUBLISHED, "torch_dist"), *((form, target) for form in FORMS for target in ("hf", "megatron"))]
    for source, target in jobs:
        for role in ROLES:
            print(f"layers / {divisor}: {source} to {target}, {role}", file=sys.stderr, flush=True)
            request = json.dumps([role, str(directory / source), target, processes])
            command = (sys.executable, str(HERE / "plan_torch_dist.py"), "--one", request)
            runs = [Planning(**json.loads(measure(command, directory=CHECKOUT).output)) for _ in range(repeat)]
            yield (source, target, divisor, role), representative(runs)


def costs_table(costs: Mapping[Name, Planning], role: str) -> str:
    """Seconds by phase and memory, for each job."""
    own = {name: cost for name, cost in costs.items() if name[3] == role}
    phases = next(iter(own.values())).seconds
    rows = [("source", "target", "layers", "files", "entries", *phases, "us/entry", "peak MiB", "told MB")]
    for (source, target, divisor, _), cost in own.items():
        rows.append(
            (
                source,
                target,
                f"all / {divisor}" if divisor > 1 else "all",
                *map(str, (cost.files, cost.entries)),
                *(f"{cost.seconds[phase]:.3f}" for phase in phases),
                f"{1e6 * per_entry(cost):.1f}",
                f"{cost.peak_bytes / MIB:.0f}",
                f"{cost.shared_bytes / 1e6:.1f}",
            )
        )
    return table(rows)


def per_entry(cost: Planning) -> float:
    """Seconds of planning for each entry of the result."""
    return cost.seconds["planning"] / cost.entries


def verdict(costs: Mapping[Name, Planning]) -> list[str]:
    """What is more than allowed."""
    problems: list[str] = []
    for (source, target, divisor, role), cost in costs.items():
        name = f"{source} to {target}, {role}"
        problems += excesses(name, cost, SECONDS_ALLOWED)
        if divisor == 1:
            growth = per_entry(cost) / per_entry(costs[source, target, FRACTIONS[0], role])
            problems += growth_problems(name, growth, "entry")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("Measure planning from and to torch_dist, from headers alone.", ["deepseek_v3"])
    parser.add_argument("--processes", type=int, default=TP * PP * EP, help=f"to plan for (default {TP * PP * EP})")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one is not None:
        role, source, target, processes = json.loads(arguments.one)
        print(json.dumps(vars(ROLES[role](Path(source), target, processes))))
        return 0
    if arguments.make is not None:
        make_sources(Path(arguments.make[0]), int(arguments.make[1]))
        return 0
    costs: dict[Name, Planning] = {}
    with work_directory(arguments.work) as work:
        try:
            for divisor in FRACTIONS:
                directory = work / f"deepseek-{divisor}"
                directory.mkdir()
                make = (sys.executable, str(HERE / "plan_torch_dist.py"), "--make", str(directory), str(divisor))
                measure(make, directory=CHECKOUT)
                costs.update(measured(directory, divisor, arguments.processes, arguments.repeat))
        except CommandError as error:
            print(error, file=sys.stderr)
            return 1
    print(f"DeepSeek-V3, 671B, {arguments.processes} processes, least of {arguments.repeat}\n{machine()}\n")
    for role in ROLES:
        print(f"{role}\n{costs_table(costs, role)}\n")
    print("CPU seconds, of one thread. chunks: looking up those of a source, all by one; told MB: compressed.\n")
    return say_verdict(verdict(costs))


if __name__ == "__main__":
    sys.exit(main())
