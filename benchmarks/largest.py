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
from tests.quantised import INT4  # noqa: E402

if TYPE_CHECKING:
    from distconv.planning.facts import Facts

TP, EP = 4, 8
SHARD_BYTES = 4_000_000_000  # as published
BYTES_PER_ELEMENT = 2
INT4_GROUP = 32
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


def kimi(divisor: int) -> Published:
    """As Kimi-K2: the same with more experts, and these in int4, each of three pieces."""
    size = replace(DEEPSEEK_V3, layers=DEEPSEEK_V3.layers // divisor, experts=384, dense_layers=1, heads=64)
    found = deepseek_vl2("a model as Kimi-K2, 1T in int4", size)
    return replace(found, configs=tuple({**each, "quantization_config": INT4} for each in found.configs))


MODELS: Mapping[str, Callable[[int], Published]] = {"qwen3vl": qwen3vl, "deepseekvl2": deepseekvl2}
# Whose weights are quantised: from them, there is a way in one direction alone.
QUANTISED: Mapping[str, Callable[[int], Published]] = {"kimi": kimi}


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
    quantised = "quantization_config" in published.configs[0]
    pieces = (
        each for tensor in published.tensors() if tensor.stored for each in pieces_of(tensor, quantised=quantised)
    )
    shards = list(filled(pieces))
    weight_map: dict[str, str] = {}
    for number, held in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(directory / name, held)
        weight_map |= dict.fromkeys((piece.name for piece in held), name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(published.configs[0]), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is stored of a tensor: with no data, or with so many bytes of it."""

    name: str
    dtype: str
    shape: Sequence[int]
    nbytes: int
    data: bytes = b""


def pieces_of(tensor: Tensor, *, quantised: bool) -> Iterator[Piece]:
    """A tensor in bfloat16; one of an expert, if it is `quantised`, as compressed-tensors stores int4."""
    if not quantised or ".mlp.experts." not in tensor.name:
        nbytes = tensor.elements * BYTES_PER_ELEMENT
        yield Piece(name=tensor.name, dtype="BF16", shape=tensor.shape, nbytes=nbytes)
        return
    rows, columns = tensor.shape
    yield Piece(name=f"{tensor.name}_packed", dtype="I32", shape=[rows, columns // 8], nbytes=tensor.elements // 2)
    groups = columns // INT4_GROUP
    yield Piece(name=f"{tensor.name}_scale", dtype="BF16", shape=[rows, groups], nbytes=2 * rows * groups)
    shape = b"".join(size.to_bytes(4, "little") for size in (rows, columns))
    yield Piece(name=f"{tensor.name}_shape", dtype="I32", shape=[2], nbytes=len(shape), data=shape)


def filled(pieces: Iterable[Piece]) -> Iterable[list[Piece]]:
    """The pieces in the order given, in shards of at most `SHARD_BYTES` (a larger piece gets its own)."""
    shard: list[Piece] = []
    room = SHARD_BYTES
    for piece in pieces:
        if shard and piece.nbytes > room:
            yield shard
            shard, room = [], SHARD_BYTES
        shard.append(piece)
        room -= piece.nbytes
    yield shard


def write_shard(path: Path, pieces: Sequence[Piece]) -> None:
    """Write a safetensors file whose data is a hole, but for what pieces have of it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for piece in pieces:
        begin, end = end, end + piece.nbytes
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(start + end)
        for piece in pieces:
            if piece.data:
                file.seek(start + header[piece.name]["data_offsets"][0])
                file.write(piece.data)


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
    from distconv.formats.huggingface.quantisation import lifted  # noqa: PLC0415
    from distconv.formats.huggingface.schemes import scheme_in  # noqa: PLC0415
    from distconv.formats.huggingface.source import Checkpoint, HuggingFaceFacts  # noqa: PLC0415
    from distconv.planning.facts import Facts  # noqa: PLC0415

    config, index = json.loads((directory / "config.json").read_text(encoding="utf-8")), read_directory(directory)
    if (scheme := scheme_in(config, "config.json")) is not None:
        index = lifted(index, scheme)
    source = HuggingFaceFacts(model=Checkpoint(index=index, config=config, quantised="so"), text=None)
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


def command_line(description: str, models: Iterable[str]) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    parser, models = argparse.ArgumentParser(description=description), list(models)
    parser.add_argument("--models", nargs="+", choices=models, default=models, help="default: all")
    parser.add_argument("--repeat", type=int, default=3, help="processes that measure each (default 3)")
    parser.add_argument("--work", type=absolute, help="where to make the temporary directory (default: the system's)")
    return parser


def say_verdict(problems: Sequence[str]) -> int:
    """Print what is more than allowed; the exit status."""
    print("\n".join(f"TOO MUCH: {problem}" for problem in problems) or "good")
    return 1 if problems else 0
