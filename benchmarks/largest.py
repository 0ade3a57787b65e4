"""The largest published models as checkpoints of headers alone, and how planning them is measured.

Owns the files, which have holes instead of data, the configuration and the facts that planning starts from, and what it
may take. Which plan is made of them, `plan` and `plan_back` say.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench import MIB, absolute

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
sys.path.insert(0, str(CHECKOUT))  # the sizes of published models are there

from tests.published import DEEPSEEK_V3, QWEN3_VL_235B, Published, deepseek_vl2, qwen3_vl  # noqa: E402
from tests.published_towers import LARGE_VISION, Tensor  # noqa: E402

if TYPE_CHECKING:
    from distconv.planning.facts import Facts

TP, EP = 4, 8
SHARD_BYTES = 4_000_000_000  # as published
BYTES_PER_ELEMENT = 2
# what the project allows for the larger model
MIB_ALLOWED = 500
# of the time per tensor from a quarter of the layers to all: linear, but for the noise of the machine
GROWTH_ALLOWED = 1.6
# of layers
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
    """What a process said of itself: CPU seconds by phase, peak resident size, and how much rank 0 told."""

    seconds: Mapping[str, float]
    peak_bytes: int
    shared_bytes: int


Cost = TypeVar("Cost", bound=Costs)


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


def layout_options(pp: int) -> list[str]:
    """The options that name the layout."""
    return [f"layout.tp={TP}", f"layout.pp={pp}", f"layout.ep={EP}"]


def configured(*options: str) -> dict[str, Any]:
    """The configuration as Hydra composes it."""
    # what any process of a job has imported by then
    from hydra import compose, initialize_config_module  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415

    with initialize_config_module("distconv.conf", version_base="1.3"):
        content: Any = OmegaConf.to_container(compose("config", list(options)))
    return dict(content)


def read_facts(directory: Path, model: str, definition: Mapping[str, Any]) -> Facts:
    """What rank 0 finds in the directory."""
    from distconv.formats.huggingface.directory import read_directory  # noqa: PLC0415
    from distconv.formats.huggingface.source import Checkpoint, HuggingFaceFacts  # noqa: PLC0415
    from distconv.planning.facts import Facts  # noqa: PLC0415

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    source = HuggingFaceFacts(model=Checkpoint(index=read_directory(directory), config=config), text=None)
    return Facts(kind="hf", source=source, reference=None, model=model, definition=definition, iteration="release")


class Stopwatch:
    """CPU seconds of the phases of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, phase: str, work: Callable[[], Any]) -> Any:
        """What the work gives; the phase gets its time."""
        begin = time.process_time()
        result = work()
        self.seconds[phase] = time.process_time() - begin
        return result


def representative(runs: Sequence[Cost]) -> Cost:
    """The least of the seconds, disturbed least by other programs; all else is alike, but for a few pages of memory."""
    seconds = {phase: min(run.seconds[phase] for run in runs) for phase in runs[0].seconds}
    return replace(runs[0], seconds=seconds, peak_bytes=max(run.peak_bytes for run in runs))


def excesses(name: str, cost: Costs, seconds_allowed: float) -> Iterator[str]:
    """What a plan took more of than is allowed."""
    if cost.seconds["planning"] > seconds_allowed:
        yield f"{name}: planning took {cost.seconds['planning']:.2f} s, allowed are {seconds_allowed}"
    if cost.peak_bytes > MIB_ALLOWED * MIB:
        yield f"{name}: {cost.peak_bytes / MIB:.0f} MiB, allowed are {MIB_ALLOWED}"


def growth_problems(name: str, growth: float, unit: str) -> Iterator[str]:
    """Whether the time per unit grew with the number of layers."""
    if growth > GROWTH_ALLOWED:
        yield f"{name}: {growth:.1f} times the time per {unit} with all layers; it must not grow"


def command_line(description: str) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--repeat", type=int, default=3, help="processes that measure each (default 3)")
    parser.add_argument("--work", type=absolute, help="where to make the temporary directory (default: the system's)")
    return parser


def say_verdict(problems: Sequence[str]) -> int:
    """Print what is more than allowed; the exit status."""
    print("\n".join(f"TOO MUCH: {problem}" for problem in problems) or "good")
    return 1 if problems else 0
