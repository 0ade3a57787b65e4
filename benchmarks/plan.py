"""Measure planning of the largest models for many processes, from headers alone.

    python benchmarks/plan.py                       Qwen3-VL-235B-A22B, and DeepSeek-V3 with a vision encoder, 671B;
                                                    and as Kimi-K2, 1T with experts in int4
    python benchmarks/plan.py --models deepseekvl2  one of them
    python benchmarks/plan.py --processes 64        for another number of processes

Makes the files of each model, and of models with a quarter and half of its layers, with headers and holes instead of
data, and measures in a fresh process each what every process of a job does before bytes move: reading the headers (rank
0 alone), sharing what they say, planning, and deriving its own share. The balance of bytes over the processes, and what
they read in all, are those of the whole model. All files are in one directory, which is removed at the end. The exit
status is 1 if planning takes more than is allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median

from bench import MIB, machine, table, work_directory
from largest import (
    CHECKOUT,
    EP,
    FRACTIONS,
    HERE,
    MODELS,
    QUANTISED,
    TP,
    Costs,
    Published,
    Stopwatch,
    command_line,
    configured,
    excesses,
    growth_problems,
    layout_options,
    read_facts,
    representative,
    say_verdict,
    write_files,
)
from measure import CommandError, measure

PP = 8
SECONDS_ALLOWED = 2.0


@dataclass(frozen=True, kw_only=True)
class Forward(Costs):
    """What there was to plan, and the bytes of each process."""

    shards: int
    tensors: int
    parameters: int
    read: Sequence[int]
    written: Sequence[int]
    source_bytes: int


def measured(directory: Path, model: str, processes: int, *, balance: bool) -> Forward:
    """The costs of planning a directory, in a process of its own; bytes only with `balance`."""
    request = json.dumps({"directory": str(directory), "model": model, "processes": processes, "balance": balance})
    command = (sys.executable, str(HERE / "plan.py"), "--one", request)
    return Forward(**json.loads(measure(command, directory=CHECKOUT).output))


def measure_here(directory: Path, model: str, processes: int, *, balance: bool) -> Forward:
    """The costs of planning a directory in this process, which has done nothing else yet."""
    from distconv.formats.huggingface.source import HuggingFaceFacts  # noqa: PLC0415
    from distconv.formats.registry import Options  # noqa: PLC0415
    from distconv.planning.assign import assign  # noqa: PLC0415
    from distconv.planning.facts import Facts  # noqa: PLC0415
    from distconv.planning.plan import plan_job  # noqa: PLC0415
    from distconv.runtime.collection import uncollected  # noqa: PLC0415
    from distconv.runtime.measurement import peak_resident_bytes  # noqa: PLC0415
    from distconv.transfer.planned_reads import planned_reads  # noqa: PLC0415

    content = configured(*overrides(directory, model))
    definition = content.pop("model")
    job = Options.from_content(content)
    watch = Stopwatch()
    with uncollected():
        found = watch.timed("headers", lambda: read_facts(directory, model, definition))
        shared = watch.timed("telling", lambda: json.dumps(found.to_json()))
        facts = watch.timed("hearing", lambda: Facts.from_json(json.loads(shared)))
        plan = watch.timed("planning", lambda: plan_job(job, facts).plan)
    shares = watch.timed("assigning", lambda: assign(plan.files, processes))
    watch.timed("own share", lambda: planned_reads(plan, shares[:1], job.io.lanes(cores=1)))
    peak = peak_resident_bytes()
    assert "torch" not in sys.modules
    assert isinstance(found.source, HuggingFaceFacts)
    index = found.source.model.index
    return Forward(
        seconds=watch.seconds,
        peak_bytes=peak,
        shared_bytes=len(shared),
        shards=len({tensor.file for tensor in index.tensors.values()}),
        tensors=len(index.tensors),
        parameters=len(plan.binding.parameters),
        read=planned_reads(plan, shares, job.io.lanes(cores=1)).asked if balance else [],
        written=[sum(file.nbytes for file in share) for share in shares],
        source_bytes=sum(each.stored_bytes(each.nbytes, each.dtype) for each in index.tensors.values()),
    )


def whole_command(directory: Path, model: str, processes: int) -> str:
    """What a user waits for who asks for the plan, and the memory that it takes."""
    command = (sys.executable, "-m", "distconv", "action=plan", f"processes={processes}", *overrides(directory, model))
    measurement = measure(command, directory=CHECKOUT)
    return f"{measurement.wall:.1f} s ({measurement.cpu:.1f} CPU s) and {measurement.peaks[0] / MIB:.0f} MiB"


def overrides(directory: Path, model: str) -> list[str]:
    """The options that name the source, the definition and the layout."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    dtype = ["dtype=bfloat16"] if "quantization_config" in config else []
    return [f"+model={model}", f"source={directory}", "target=unused", *layout_options(PP), *dtype]


def costs_table(costs: Sequence[tuple[str, int, Forward]]) -> str:
    """Seconds by phase and memory, for each model and number of layers."""
    rows = [
        (
            "model",
            "layers",
            "shards",
            "tensors",
            "parameters",
            *costs[0][2].seconds,
            "us/tensor",
            "us/parameter",
            "peak MiB",
            "shared MB",
        )
    ]
    for name, layers, cost in costs:
        rows.append(
            (
                name,
                str(layers),
                str(cost.shards),
                str(cost.tensors),
                str(cost.parameters),
                *(f"{value:.3f}" for value in cost.seconds.values()),
                f"{1e6 * cost.seconds['headers'] / cost.tensors:.1f}",
                f"{1e6 * per_parameter(cost):.1f}",
                f"{cost.peak_bytes / MIB:.0f}",
                f"{cost.shared_bytes / 1e6:.1f}",
            )
        )
    return table(rows)


def per_parameter(cost: Forward) -> float:
    """Seconds of planning for each parameter of the training side."""
    return cost.seconds["planning"] / cost.parameters


def balance_table(costs: Iterable[tuple[str, Forward]]) -> str:
    """Bytes over the processes: least, median and most, and all of them beside the size of the source."""
    rows = [("model", "GB", "least", "median", "most", "most / median", "all", "all / source")]
    for name, cost in costs:
        for what, sizes in (("written", cost.written), ("read", cost.read)):
            shown = [f"{size / 1e9:.2f}" for size in (min(sizes), median(sizes), max(sizes))]
            ratio = f"{max(sizes) / median(sizes):.2f}"
            rows.append((name, what, *shown, ratio, f"{sum(sizes) / 1e9:.0f}", f"{sum(sizes) / cost.source_bytes:.2f}"))
    return table(rows)


def verdict(costs: Sequence[tuple[str, int, Forward]]) -> list[str]:
    """What is more than allowed."""
    of_model: dict[str, list[Forward]] = {}
    for name, _, cost in costs:
        of_model.setdefault(name, []).append(cost)
    return [
        *chain.from_iterable(excesses(name, cost, SECONDS_ALLOWED) for name, _, cost in costs),
        *chain.from_iterable(
            growth_problems(name, per_parameter(most) / per_parameter(least), "parameter")
            for name, (least, *_, most) in of_model.items()
        ),
    ]


def compare(arguments: argparse.Namespace, work: Path) -> int:
    """Make the files, measure, and print the tables."""
    costs: list[tuple[str, int, Forward]] = []
    whole: list[tuple[str, Forward]] = []
    commands: list[str] = []
    for model in arguments.models:
        for divisor in FRACTIONS:
            published = {**MODELS, **QUANTISED}[model](divisor)
            directory = work / f"{model}-{divisor}"
            write_files(directory, published)
            print(f"{published.name}, layers / {divisor}", file=sys.stderr, flush=True)
            runs = [
                measured(directory, published.definition, arguments.processes, balance=divisor == 1 and not turn)
                for turn in range(arguments.repeat)
            ]
            cost = representative(runs)
            costs.append((published.name, layers_of(published), cost))
            if divisor == 1:
                whole.append((published.name, cost))
                command = whole_command(directory, published.definition, arguments.processes)
                commands.append(f"{published.name}: {command}")
    print(f"TP {TP}, PP {PP}, EP {EP} on {arguments.processes} processes, least of {arguments.repeat}\n{machine()}\n")
    print(costs_table(costs))
    print(
        "\nCPU seconds, of one thread. headers, telling: rank 0 alone; hearing, planning, assigning, own share: every "
        "process.\nus/tensor: of headers; us/parameter: of planning, where a parameter is one of the training side.\n"
    )
    print("distconv action=plan, which counts the reads of every process:\n" + "\n".join(commands) + "\n")
    print(balance_table(whole))
    print()
    return say_verdict(verdict(costs))


def layers_of(published: Published) -> int:
    """The number of layers of its language model."""
    return len({tensor.place for tensor in published.tensors() if tensor.modality == "text" and tensor.is_in_layer})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("Measure planning of the largest models, from headers alone.", {**MODELS, **QUANTISED})
    parser.add_argument("--processes", type=int, default=TP * PP * EP, help=f"to plan for (default {TP * PP * EP})")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one is not None:
        request = json.loads(arguments.one)
        directory = Path(request.pop("directory"))
        print(json.dumps(vars(measure_here(directory, **request))))
        return 0
    with work_directory(arguments.work) as work:
        try:
            return compare(arguments, work)
        except CommandError as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
