"""Measure planning of the way back of the largest models, from the index of a Megatron checkpoint alone.

    python benchmarks/plan_back.py                       Qwen3-VL-235B-A22B, and DeepSeek-V3 with a vision encoder, 671B
    python benchmarks/plan_back.py --models deepseekvl2  one of them

The index of the Megatron checkpoint is that of the result that the way forward plans, for all layers, for half and for
a quarter of them; no such file is made. What rank 0 would share of it is handed to a fresh process, which measures in
itself what every process of a job does before bytes move: hearing, planning a Hugging Face directory, assigning, and
deriving its own share. The exit status is 1 if planning takes more than is allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import MIB, machine, table, work_directory
from largest import (
    BYTES_PER_ELEMENT,
    CHECKOUT,
    EP,
    FRACTIONS,
    HERE,
    MODELS,
    TP,
    Costs,
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

PP = 4
SECONDS_ALLOWED = 5.0


@dataclass(frozen=True, kw_only=True)
class Back(Costs):
    """What there was to plan."""

    files: int
    pieces: int
    copies: int
    tensors: int


def make_facts(directory: Path, model: str) -> None:
    """Write what rank 0 shares of the Megatron checkpoint that a Hugging Face directory would become."""
    from distconv.formats.huggingface.source import HuggingFaceFacts  # noqa: PLC0415
    from distconv.formats.megatron.index import MegatronIndex, RankFile  # noqa: PLC0415
    from distconv.formats.megatron.plan import MegatronPlan  # noqa: PLC0415
    from distconv.formats.model import Reference  # noqa: PLC0415
    from distconv.formats.registry import Options  # noqa: PLC0415
    from distconv.formats.torch_zip.archive import ArchivedTensor  # noqa: PLC0415
    from distconv.planning.plan import plan_job  # noqa: PLC0415
    from distconv.tensors.stored import SourceFile  # noqa: PLC0415

    content = configured(f"+model={model}", f"source={directory}", "target=unused", *layout_options(PP))
    facts = read_facts(directory, model, content.pop("model"))
    plan = plan_job(Options.from_content(content), facts).plan
    assert isinstance(plan, MegatronPlan)
    assert isinstance(facts.source, HuggingFaceFacts)
    checkpoint = facts.source.model

    def tensors(entries: Iterator[Any]) -> dict[tuple[str, str], ArchivedTensor]:
        found, offset = {}, 0
        for entry in entries:
            tensor = entry.tensor
            found[entry.key, entry.name] = ArchivedTensor.contiguous(tensor.dtype, tensor.shape, offset)
            offset += tensor.elements * BYTES_PER_ELEMENT
        return found

    files = tuple(
        RankFile(
            rank=(file.tp_rank, file.pp_rank, file.ep_rank),
            file=SourceFile(file.path, file.nbytes),
            tensors=tensors(plan.entries(file)),
        )
        for file in plan.files
    )
    index = MegatronIndex(
        directory=str(directory), iteration="release", dictionaries=plan.dictionaries, files=files, others=()
    )
    shards = {name: Path(tensor.file.path).name for name, tensor in checkpoint.index.tensors.items()}
    reference = Reference(
        directory=str(directory),
        config=checkpoint.config,
        is_adapter=False,
        index=checkpoint.index,
        shard_files=shards,
        index_content=None,
    )
    shared = json.dumps(replace(facts, kind="megatron", source=index, reference=reference).to_json())
    (directory / "facts.json").write_text(shared, encoding="utf-8")


def measure_here(directory: Path) -> Back:
    """The costs of planning the way back in this process, which has done nothing else yet."""
    from distconv.formats.megatron.index import MegatronIndex  # noqa: PLC0415
    from distconv.formats.registry import Options  # noqa: PLC0415
    from distconv.planning.assign import assign  # noqa: PLC0415
    from distconv.planning.facts import Facts  # noqa: PLC0415
    from distconv.planning.plan import plan_job  # noqa: PLC0415
    from distconv.runtime.collection import uncollected  # noqa: PLC0415
    from distconv.runtime.measurement import peak_resident_bytes  # noqa: PLC0415
    from distconv.transfer.planned_reads import planned_reads  # noqa: PLC0415

    job = Options.from_content(configured(f"source={directory}", "target=unused", "target_format=hf"))
    shared = (directory / "facts.json").read_text(encoding="utf-8")
    watch = Stopwatch()
    with uncollected():
        facts = watch.timed("hearing", lambda: Facts.from_json(json.loads(shared)))
        planned = watch.timed("planning", lambda: plan_job(job, facts))
    shares = watch.timed("assigning", lambda: assign(planned.plan.files, TP * PP * EP))
    watch.timed("own share", lambda: planned_reads(planned.plan, shares[:1], job.io.lanes(cores=1)))
    peak = peak_resident_bytes()
    assert "torch" not in sys.modules
    assert isinstance(facts.source, MegatronIndex)
    return Back(
        seconds=watch.seconds,
        peak_bytes=peak,
        shared_bytes=len(shared),
        files=len(facts.source.files),
        pieces=sum(len(file.tensors) for file in facts.source.files),
        copies=len(planned.source.replicas),
        tensors=planned.plan.summary()["hf"]["tensors"],
    )


def measured(directory: Path, repeat: int) -> Back:
    """The costs of planning, in processes of their own: the least of the seconds, disturbed least by other programs."""
    command = (sys.executable, str(HERE / "plan_back.py"), "--one", str(directory))
    return representative([Back(**json.loads(measure(command, directory=CHECKOUT).output)) for _ in range(repeat)])


def per_piece(cost: Back) -> float:
    """Seconds of planning for each piece in the files."""
    return cost.seconds["planning"] / cost.pieces


def costs_table(costs: Mapping[tuple[str, int], Back]) -> str:
    """Seconds by phase and memory, for each model and part of its layers."""
    phases = next(iter(costs.values())).seconds
    rows = [("model", "files", "pieces", "copies", "tensors", *phases, "us/piece", "peak MiB", "shared MB")]
    for (name, divisor), cost in costs.items():
        rows.append(
            (
                name if divisor == 1 else f"{name}, layers / {divisor}",
                *map(str, (cost.files, cost.pieces, cost.copies, cost.tensors)),
                *(f"{value:.3f}" for value in cost.seconds.values()),
                f"{1e6 * per_piece(cost):.1f}",
                f"{cost.peak_bytes / MIB:.0f}",
                f"{cost.shared_bytes / 1e6:.1f}",
            )
        )
    return table(rows)


def verdict(costs: Mapping[tuple[str, int], Back]) -> list[str]:
    """What is more than allowed."""
    problems: list[str] = []
    for (name, divisor), cost in costs.items():
        problems += excesses(name, cost, SECONDS_ALLOWED)
        if divisor == 1:
            problems += growth_problems(name, per_piece(cost) / per_piece(costs[name, FRACTIONS[0]]), "piece")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = command_line("Measure planning of the way back of the largest models.", MODELS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one is not None:
        print(json.dumps(vars(measure_here(arguments.one))))
        return 0
    if arguments.make is not None:
        make_facts(Path(arguments.make[0]), arguments.make[1])
        return 0
    costs: dict[tuple[str, int], Back] = {}
    with work_directory(arguments.work) as work:
        try:
            for model in arguments.models:
                for divisor in FRACTIONS:
                    published = MODELS[model](divisor)
                    directory = work / f"{model}-{divisor}"
                    write_files(directory, published)
                    print(f"{published.name}, layers / {divisor}", file=sys.stderr, flush=True)
                    make = (sys.executable, str(HERE / "plan_back.py"), "--make", str(directory), published.definition)
                    measure(make, directory=CHECKOUT)
                    costs[published.name, divisor] = measured(directory, arguments.repeat)
        except CommandError as error:
            print(error, file=sys.stderr)
            return 1
    print(f"back from TP {TP}, PP {PP}, EP {EP}, least of {arguments.repeat}\n{machine()}\n\n{costs_table(costs)}")
    print(
        "\nCPU seconds, of one thread, on every process. copies: pieces that are compared before anything is written.\n"
    )
    return say_verdict(verdict(costs))


if __name__ == "__main__":
    sys.exit(main())
