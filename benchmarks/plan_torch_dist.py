"""Measure planning of the largest language model to and from Megatron-core's torch_dist, from headers alone.

    python benchmarks/plan_torch_dist.py                   DeepSeek-V3, 671B
    python benchmarks/plan_torch_dist.py --processes 64    for another number of processes

Makes the files of the model, and of models with a quarter and half of its layers, with headers and holes instead of
data: as published, and then as torch_dist, as distconv itself lays it out. What every process of a job does before
bytes move is measured in a fresh process each: to torch_dist, from there to Hugging Face, and to Megatron. Reading the
files is handed out to all processes in a job; here rank 0 does it alone. The exit status is 1 if planning takes more
than is allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import MIB, machine, table, work_directory
from largest import (
    CHECKOUT,
    FRACTIONS,
    HERE,
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

from tests.published_language_models import MIXTURE_OF_DEEPSEEK, Decoder, Latent, of
from tests.published_towers import Text

PP = 8
SECONDS_ALLOWED = 2.5
LAYERS = 61
TO_TORCH_DIST, TO_HF, TO_MEGATRON = "to torch_dist", "to hf", "to megatron"
WAYS: Mapping[str, tuple[str, ...]] = {
    TO_TORCH_DIST: ("target_format=torch_dist",),
    TO_HF: ("target_format=hf",),
    TO_MEGATRON: tuple(layout_options(PP)),
}


@dataclass(frozen=True, kw_only=True)
class Planning(Costs):
    """What there was to plan: files and tensors of the result."""

    files: int
    entries: int


def make(directory: Path, divisor: int) -> None:
    """The model as published, and as torch_dist."""
    size = replace(Text(LAYERS, 7168, 128, 128, 18432, 129280), layers=LAYERS // divisor)
    decoder = Decoder(size=size, latent=Latent(), mixture=MIXTURE_OF_DEEPSEEK, further=1)
    write_files(directory, of("DeepSeek-V3", "deepseek_v3", decoder, parameters=None))
    measure((sys.executable, str(HERE / "plan_torch_dist.py"), "--make", str(directory)), directory=CHECKOUT)


def make_torch_dist(directory: Path) -> None:
    """Write the torch_dist that a published model becomes, with holes instead of data."""
    from distconv.formats.frame import write_frame  # noqa: PLC0415

    _, planned = planning(directory, TO_TORCH_DIST, Stopwatch(), [])
    target = directory / "torch_dist" / "release"
    target.mkdir(parents=True)
    for file in planned.plan.files:
        write_frame(target / file.path, planned.files.frame(file, list(planned.plan.entries(file))))
    for name, content in planned.files.beside().items():
        (target / name).write_bytes(content)


def planning(directory: Path, way: str, watch: Stopwatch, shared: list[int]) -> tuple[Any, Any]:
    """The options and the plan of a process that reads all by itself; `shared` gets the size of what rank 0 shares."""
    from distconv.formats.registry import Options  # noqa: PLC0415
    from distconv.models.library import Library  # noqa: PLC0415
    from distconv.planning.facts import Facts  # noqa: PLC0415
    from distconv.planning.look import look  # noqa: PLC0415
    from distconv.planning.plan import plan_job  # noqa: PLC0415
    from distconv.runtime.collection import uncollected  # noqa: PLC0415

    source = directory if way == TO_TORCH_DIST else directory / "torch_dist"
    known = [] if way == TO_TORCH_DIST else [f"reference={directory}"]
    job = Options.from_content(configured(f"source={source}", "target=unused", *known, *WAYS[way]))
    with uncollected():
        found = watch.timed("headers", lambda: look(job, None, Library.of_package()))
        text = watch.timed("telling", lambda: json.dumps(found.to_json()))
        shared.append(len(text))
        facts = watch.timed("hearing", lambda: Facts.from_json(json.loads(text)))
        return job, watch.timed("planning", lambda: plan_job(job, facts))


def measure_here(directory: Path, way: str, processes: int) -> Planning:
    """The costs of planning in this process, which has done nothing else yet."""
    from distconv.planning.assign import assign  # noqa: PLC0415
    from distconv.runtime.measurement import peak_resident_bytes  # noqa: PLC0415
    from distconv.transfer.batches import planned_reads  # noqa: PLC0415

    watch, told = Stopwatch(), list[int]()
    job, planned = planning(directory, way, watch, told)
    shares = watch.timed("assigning", lambda: assign(planned.plan.files, processes))
    watch.timed("own share", lambda: planned_reads(planned.plan, shares[:1], job.io.buffer_bytes))
    peak = peak_resident_bytes()
    # What rank 0 writes beside the tensors.
    watch.timed("beside", planned.files.beside)
    assert "torch" not in sys.modules
    return Planning(
        seconds=watch.seconds,
        peak_bytes=peak,
        shared_bytes=told[0],
        files=len(planned.plan.files),
        entries=sum(1 for file in planned.plan.files for _ in planned.plan.entries(file)),
    )


def measured(directory: Path, way: str, processes: int, repeat: int) -> Planning:
    """The costs of planning, in processes of their own."""
    request = json.dumps({"directory": str(directory), "way": way, "processes": processes})
    command = (sys.executable, str(HERE / "plan_torch_dist.py"), "--one", request)
    runs = [Planning(**json.loads(measure(command, directory=CHECKOUT).output)) for _ in range(repeat)]
    return representative(runs)


def costs_table(costs: Mapping[tuple[str, int], Planning]) -> str:
    """Seconds by phase and memory, for each way and part of the layers."""
    phases = next(iter(costs.values())).seconds
    rows = [("way", "layers", "files", "tensors", *phases, "peak MiB", "shared MB")]
    for (way, divisor), cost in costs.items():
        seconds = [f"{value:.3f}" for value in cost.seconds.values()]
        sizes = [f"{cost.peak_bytes / MIB:.0f}", f"{cost.shared_bytes / 1e6:.1f}"]
        rows.append((way, str(LAYERS // divisor), str(cost.files), str(cost.entries), *seconds, *sizes))
    return table(rows)


def verdict(costs: Mapping[tuple[str, int], Planning]) -> list[str]:
    """What is more than allowed."""
    problems: list[str] = []
    for (way, divisor), cost in costs.items():
        problems += excesses(way, cost, SECONDS_ALLOWED)
        if divisor == 1:
            least = costs[way, FRACTIONS[0]]
            growth = cost.seconds["planning"] / cost.entries / (least.seconds["planning"] / least.entries)
            problems += growth_problems(way, growth, "tensor")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("Measure planning of the largest language model to and from torch_dist.", ["deepseek_v3"])
    parser.add_argument("--processes", type=int, default=256, help="of the job that is planned (default 256)")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.make is not None:
        make_torch_dist(arguments.make)
        return 0
    if arguments.one is not None:
        request = arguments.one
        print(json.dumps(vars(measure_here(Path(request["directory"]), request["way"], request["processes"]))))
        return 0
    costs: dict[tuple[str, int], Planning] = {}
    with work_directory(arguments.work) as work:
        try:
            for divisor in FRACTIONS:
                directory = work / f"layers-{divisor}"
                make(directory, divisor)
                print(f"DeepSeek-V3, layers / {divisor}", file=sys.stderr, flush=True)
                for way in WAYS:
                    costs[way, divisor] = measured(directory, way, arguments.processes, arguments.repeat)
        except CommandError as error:
            print(error, file=sys.stderr)
            return 1
    print(f"DeepSeek-V3 on {arguments.processes} processes, least of {arguments.repeat}\n{machine()}\n")
    print(costs_table({key: costs[key] for key in sorted(costs, key=lambda key: (list(WAYS).index(key[0]), -key[1]))}))
    print(
        "\nCPU seconds, of one thread. headers, telling, beside: rank 0, but for reading the files of torch_dist,\n"
        "which all processes share; hearing, planning, assigning, own share: every process. tensors: of the result.\n"
    )
    return say_verdict(verdict(costs))


if __name__ == "__main__":
    sys.exit(main())
