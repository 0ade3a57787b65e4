"""Measure planning of the largest models for many processes, from headers alone.

    python benchmarks/plan.py                       Qwen3-VL-235B-A22B, and DeepSeek-V3 with a vision encoder, 671B
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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import MIB, absolute, machine, table, work_directory
from measure import CommandError, measure

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
sys.path.insert(0, str(CHECKOUT))  # the sizes of published models are there

from tests.published import DEEPSEEK_V3, QWEN3_VL_235B, Published, deepseek_vl2, qwen3_vl  # noqa: E402
from tests.published_towers import LARGE_VISION, Tensor  # noqa: E402

TP, PP, EP = 4, 8, 8
SHARD_BYTES = 4_000_000_000  # as published
BYTES_PER_ELEMENT = 2
# what the project allows for the larger model
SECONDS_ALLOWED = 2.0
MIB_ALLOWED = 500
# of the time per tensor from a quarter of the layers to all: linear, but for the noise of the machine
GROWTH_ALLOWED = 1.6
# of layers; the balance is measured where there are all
FRACTIONS = (4, 2, 1)


def qwen3vl(divisor: int) -> Published:
    """All experts of a layer in one tensor."""
    size = replace(QWEN3_VL_235B, layers=QWEN3_VL_235B.layers // divisor)
    return qwen3_vl("Qwen3-VL-235B-A22B", size, LARGE_VISION, experts=128, expert_mlp=1536)


def deepseekvl2(divisor: int) -> Published:
    """Three tensors for each expert."""
    return deepseek_vl2("DeepSeek-V3, 671B", replace(DEEPSEEK_V3, layers=DEEPSEEK_V3.layers // divisor))


MODELS: Mapping[str, Callable[[int], Published]] = {"qwen3vl": qwen3vl, "deepseekvl2": deepseekvl2}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a process said of itself: CPU seconds by phase, peak resident size, and how much there was to plan."""

    seconds: Mapping[str, float]
    peak_bytes: int
    shared_bytes: int
    shards: int
    tensors: int
    parameters: int
    read: Sequence[int]
    written: Sequence[int]
    source_bytes: int


def write_files(directory: Path, published: Published) -> None:
    """Write the checkpoint directory: shards that have headers and no data, index and configuration."""
    directory.mkdir()
    shards = list(filled(tensor for tensor in published.tensors() if tensor.stored))
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(directory / name, tensors)
        weight_map |= dict.fromkeys((tensor.name for tensor in tensors), name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(published.configs[0]), encoding="utf-8")


def filled(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """The tensors in the order given, in shards of at most `SHARD_BYTES` (a larger tensor gets its own)."""
    shard: list[Tensor] = []
    room = SHARD_BYTES
    for tensor in tensors:
        if shard and tensor.elements * BYTES_PER_ELEMENT > room:
            yield shard
            shard, room = [], SHARD_BYTES
        shard.append(tensor)
        room -= tensor.elements * BYTES_PER_ELEMENT
    yield shard


def write_shard(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file whose data is a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.elements * BYTES_PER_ELEMENT
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


def measured(directory: Path, model: str, processes: int, *, balance: bool) -> Costs:
    """The costs of planning a directory, in a process of its own; bytes only with `balance`."""
    request = json.dumps({"directory": str(directory), "model": model, "processes": processes, "balance": balance})
    command = (sys.executable, str(HERE / "plan.py"), "--one", request)
    return Costs(**json.loads(measure(command, directory=CHECKOUT).output))


def measure_here(directory: Path, model: str, processes: int, *, balance: bool) -> Costs:
    """The costs of planning a directory in this process, which has done nothing else yet."""
    # what any process of a job has imported by then
    from hydra import compose, initialize_config_module  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415

    from distconv.assignment import assign  # noqa: PLC0415
    from distconv.config import parse_config  # noqa: PLC0415
    from distconv.facts import Checkpoint, Facts  # noqa: PLC0415
    from distconv.measurement import peak_resident_bytes  # noqa: PLC0415
    from distconv.planning import plan_job  # noqa: PLC0415
    from distconv.source_directory import read_directory  # noqa: PLC0415
    from distconv.work import planned_reads  # noqa: PLC0415

    with initialize_config_module("distconv.conf", version_base="1.3"):
        content: Any = OmegaConf.to_container(compose("config", overrides(directory, model)))
    definition = content.pop("model")
    job = parse_config(content)
    seconds: dict[str, float] = {}

    def timed(phase: str, work: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = work()
        seconds[phase] = time.process_time() - begin
        return result

    index = timed("headers", lambda: read_directory(directory))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint(index=index, config=config)
    facts = Facts(
        source=checkpoint, text_source=None, reference=None, model=model, definition=definition, iteration="release"
    )
    shared = timed("telling", lambda: json.dumps(facts.to_json()))
    facts = timed("hearing", lambda: Facts.from_json(json.loads(shared)))
    plan = timed("planning", lambda: plan_job(job, facts).plan)
    shares = timed("assigning", lambda: assign(plan.files, processes))
    timed("own share", lambda: planned_reads(plan, shares[:1], job.io.buffer_bytes))
    peak = peak_resident_bytes()
    assert "torch" not in sys.modules
    return Costs(
        seconds=seconds,
        peak_bytes=peak,
        shared_bytes=len(shared),
        shards=len({tensor.file for tensor in index.tensors.values()}),
        tensors=len(index.tensors),
        parameters=len(plan.binding.parameters),
        read=planned_reads(plan, shares, job.io.buffer_bytes) if balance else [],
        written=[sum(file.nbytes for file in share) for share in shares],
        source_bytes=sum(tensor.nbytes for tensor in index.tensors.values()),
    )


def whole_command(directory: Path, model: str, processes: int) -> str:
    """What a user waits for who asks for the plan, and the memory that it takes."""
    command = (sys.executable, "-m", "distconv", "action=plan", f"processes={processes}", *overrides(directory, model))
    measurement = measure(command, directory=CHECKOUT)
    return f"{measurement.wall:.1f} s ({measurement.cpu:.1f} CPU s) and {measurement.peaks[0] / MIB:.0f} MiB"


def overrides(directory: Path, model: str) -> list[str]:
    """The options that name the source, the definition and the layout."""
    sizes = [f"layout.tp={TP}", f"layout.pp={PP}", f"layout.ep={EP}"]
    return [f"+model={model}", f"source={directory}", "target=unused", *sizes]


def representative(runs: Sequence[Costs]) -> Costs:
    """The least of the seconds, disturbed least by other programs; all else is alike, but for a few pages of memory."""
    seconds = {phase: min(run.seconds[phase] for run in runs) for phase in runs[0].seconds}
    return replace(runs[0], seconds=seconds, peak_bytes=max(run.peak_bytes for run in runs))


def costs_table(costs: Sequence[tuple[str, int, Costs]]) -> str:
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


def per_parameter(cost: Costs) -> float:
    """Seconds of planning for each parameter of the training side."""
    return cost.seconds["planning"] / cost.parameters


def balance_table(costs: Iterable[tuple[str, Costs]]) -> str:
    """Bytes over the processes: least, median and most, and all of them beside the size of the source."""
    rows = [("model", "GB", "least", "median", "most", "most / median", "all", "all / source")]
    for name, cost in costs:
        for what, sizes in (("written", cost.written), ("read", cost.read)):
            shown = [f"{size / 1e9:.2f}" for size in (min(sizes), median(sizes), max(sizes))]
            ratio = f"{max(sizes) / median(sizes):.2f}"
            rows.append((name, what, *shown, ratio, f"{sum(sizes) / 1e9:.0f}", f"{sum(sizes) / cost.source_bytes:.2f}"))
    return table(rows)


def verdict(costs: Sequence[tuple[str, int, Costs]]) -> list[str]:
    """What is more than allowed."""
    problems = []
    of_model: dict[str, list[Costs]] = {}
    for name, _, cost in costs:
        of_model.setdefault(name, []).append(cost)
        if cost.seconds["planning"] > SECONDS_ALLOWED:
            problems.append(f"{name}: planning took {cost.seconds['planning']:.2f} s, allowed are {SECONDS_ALLOWED}")
        if cost.peak_bytes > MIB_ALLOWED * MIB:
            problems.append(f"{name}: {cost.peak_bytes / MIB:.0f} MiB, allowed are {MIB_ALLOWED}")
    for name, (least, *_, most) in of_model.items():
        growth = per_parameter(most) / per_parameter(least)
        if growth > GROWTH_ALLOWED:
            problems.append(f"{name}: {growth:.1f} times the time per parameter with all layers; it must not grow")
    return problems


def compare(arguments: argparse.Namespace, work: Path) -> int:
    """Make the files, measure, and print the tables."""
    costs: list[tuple[str, int, Costs]] = []
    whole: list[tuple[str, Costs]] = []
    commands: list[str] = []
    for model in arguments.models:
        for divisor in FRACTIONS:
            published = MODELS[model](divisor)
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
    print("python -m distconv action=plan, which counts the reads of every process:\n" + "\n".join(commands) + "\n")
    print(balance_table(whole))
    problems = verdict(costs)
    print("\n" + ("\n".join(f"TOO MUCH: {problem}" for problem in problems) or "good"))
    return 1 if problems else 0


def layers_of(published: Published) -> int:
    """The number of layers of its language model."""
    return len({tensor.place for tensor in published.tensors() if tensor.modality == "text" and tensor.is_in_layer})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure planning of the largest models, from headers alone.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--processes", type=int, default=TP * PP * EP, help=f"to plan for (default {TP * PP * EP})")
    parser.add_argument("--repeat", type=int, default=3, help="processes that measure each (default 3)")
    parser.add_argument("--work", type=absolute, help="where to make the temporary directory (default: the system's)")
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
