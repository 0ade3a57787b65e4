"""What one process of a Megatron training job does with a converted checkpoint, up to its first forward pass.

It builds the modules of its (tensor, expert, pipeline) rank, fills their parameters with NaN, loads its file strictly,
and takes part in a forward pass of the text decoder and in one of the image encoder, if there is one, handing
activations on by plain send and receive. Expert parallel ranks are data parallel outside the experts, so that each
reads its own share of the token ids, and the experts get tokens from all of them. Never decides whether an output is
right, and leaves no tensor of a checkpoint unaccounted for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from image_encoder import ImageEncoder, VisionSizes
from megatron.core import parallel_state
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from text_decoder import TextSizes, hidden_shape, text_decoder
from torch import Tensor, nn

REFUSED = 3
"""Exit status of the ranks of a job whose checkpoint does not fit."""


class CheckpointError(Exception):
    """The checkpoint is not what the training side loads."""


@dataclasses.dataclass(frozen=True)
class Layout:
    tp: int
    ep: int
    text: list[list[int]]
    vision: list[list[int]]

    @property
    def pp(self) -> int:
        return len(self.text[0])

    @property
    def vpp(self) -> int:
        return len(self.text)

    @property
    def lanes(self) -> int:
        """The number of processes of each pipeline rank."""
        return self.tp * self.ep

    @property
    def directories(self) -> list[str]:
        """One per process, in the order of the process ranks."""
        return [
            f"mp_rank_{t:02d}" + (f"_{p:03d}" if self.pp > 1 else "") + (f"_{e:03d}" if self.ep > 1 else "")
            for p in range(self.pp)
            for e in range(self.ep)
            for t in range(self.tp)
        ]


@dataclasses.dataclass(frozen=True)
class Job:
    checkpoint: Path
    layout: Layout
    text: TextSizes
    vision: VisionSizes | None
    inputs: dict[str, Tensor]
    outputs: Path

    @classmethod
    def from_json(cls, line: str) -> Job:
        job = json.loads(line)
        model = json.loads(Path(job["model"]).read_text())
        return cls(
            checkpoint=Path(job["checkpoint"]),
            layout=Layout(**job["layout"]),
            text=TextSizes(**model["text_decoder"]),
            vision=VisionSizes(**model["image_encoder"]) if "image_encoder" in model else None,
            inputs=torch.load(job["inputs"], weights_only=True),
            outputs=Path(job["outputs"]),
        )


def without_accelerator() -> None:
    """Replace what megatron-core does on an accelerator only, for this process and those forked from it."""
    torch.set_num_threads(1)
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]  # megatron-core takes any device
    CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
    # the only norm without an accelerator refuses sequence parallelism, although what it computes is the same
    WrappedTorchNorm.__new__ = staticmethod(rms_norm)
    # would overwrite a tied head with the embedding; what the checkpoint holds has to be right by itself
    LanguageModule.setup_embeddings_and_output_layer = lambda _: None


def rms_norm(_: type, config: TransformerConfig, hidden_size: int, eps: float, **__: object) -> nn.RMSNorm:
    assert config.normalization == "RMSNorm"
    return nn.RMSNorm(hidden_size, eps=eps)


def rank_main(job: Job, rank: int, *, rendezvous: Path, report: Path, timeout: timedelta) -> None:
    """The process of this rank. All learn of a misfit before any of them computes, so that none waits for another.

    Rank 0 writes the misfits of all ranks to `report`; the ranks at the end of a pipeline write their outputs.
    """
    layout = job.layout
    dist.init_process_group(
        "gloo",
        init_method=rendezvous.as_uri(),
        rank=rank,
        world_size=len(layout.directories),
        timeout=timeout,
    )
    parallel_state.initialize_model_parallel(
        layout.tp,
        layout.pp,
        layout.vpp if layout.vpp > 1 else None,
        expert_model_parallel_size=layout.ep,
        create_gloo_process_groups=False,
    )
    parts = parts_of(job)
    modules, problems = load(job, parts, rank)
    everyones: list[list[str]] = [[] for _ in layout.directories]
    dist.all_gather_object(everyones, problems)
    if any(everyones):
        if rank == 0:
            report.write_text("\n".join(line for lines in everyones for line in lines))
        sys.exit(REFUSED)
    with torch.inference_mode():
        for part in parts:
            output = pipelined(part, modules[part.name], rank=rank, lanes=layout.lanes)
            if output is not None:
                e, t = divmod(rank % layout.lanes, layout.tp)
                torch.save(output.clone(), job.outputs / f"{part.output}_{t}_{e}.pt")
    dist.barrier()
    dist.destroy_process_group()


@dataclasses.dataclass(frozen=True)
class Part:
    """One modality: how its layers are spread, how a range of them is built, and how it is computed."""

    name: str
    output: str
    layers: list[list[int]]
    build: Callable[[range, bool, bool], nn.Module]
    forward: Callable[[Any, Tensor | None], Tensor]
    hidden_shape: tuple[int, ...]

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(v, p) of the stages that hold layers, in the order of the layers. The others have no module of this part."""
        return [(v, p) for v, row in enumerate(self.layers) for p, count in enumerate(row) if count]

    def module(self, stage: tuple[int, int]) -> nn.Module | None:
        if stage not in self.stages:
            return None
        ends = list(accumulate(self.layers[v][p] for v, p in self.stages))
        number = self.stages.index(stage)
        layers = range(ends[number - 1] if number else 0, ends[number])
        return self.build(layers, number == 0, stage == self.stages[-1])


def parts_of(job: Job) -> list[Part]:
    decoder = text_part(job)
    return [decoder] if job.vision is None else [decoder, vision_part(job, job.vision)]


def text_part(job: Job) -> Part:
    input_ids = job.inputs["input_ids"].chunk(job.layout.ep)[parallel_state.get_expert_model_parallel_rank()]
    length = input_ids.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)[None, None]

    def decode(module: GPTModel, received: Tensor | None) -> Tensor:
        module.set_input_tensor(received)
        output: Tensor = module(input_ids, position_ids=None, attention_mask=future)
        return gather_from_tensor_model_parallel_region(output) if module.post_process else output

    return Part(
        name="text_decoder",
        output="logits",
        layers=job.layout.text,
        build=lambda layers, first, last: text_decoder(job.text, layers=layers, first=first, last=last),
        forward=decode,
        hidden_shape=hidden_shape(job.text, input_ids),
    )


def vision_part(job: Job, sizes: VisionSizes) -> Part:
    pixels, grid = job.inputs["pixel_values"], job.inputs["grid_thw"]
    return Part(
        name="image_encoder",
        output="image_features",
        layers=job.layout.vision,
        build=lambda layers, first, last: ImageEncoder(sizes, layers=len(layers), first=first, last=last),
        forward=lambda module, received: module(pixels if received is None else received, grid),
        hidden_shape=(len(pixels), sizes.hidden_size),
    )


def load(job: Job, parts: list[Part], rank: int) -> tuple[dict[str, list[nn.Module | None]], list[str]]:
    """For each part the modules of this rank, one per virtual stage; and everything that does not fit."""
    where = f"rank {rank}"
    modules: dict[str, list[nn.Module | None]] = {part.name: [] for part in parts}
    try:
        chunks = read(job, rank)
    except (CheckpointError, OSError) as refusal:
        return modules, [f"{where}: {refusal}"]
    problems = []
    for v, chunk in enumerate(chunks):
        if len(chunks) > 1:
            parallel_state.set_virtual_pipeline_model_parallel_rank(v)
        for part in parts:
            prefix = part.name + "."
            tensors = {name.removeprefix(prefix): chunk.pop(name) for name in sorted(chunk) if name.startswith(prefix)}
            module = part.module((v, rank // job.layout.lanes))
            modules[part.name].append(module)
            problems += [f"{where}, virtual stage {v}, {part.name}: {problem}" for problem in misfits(module, tensors)]
        if chunk:
            problems.append(f"{where}, virtual stage {v}: of no part: {sorted(chunk)}")
    return modules, problems


def read(job: Job, rank: int) -> list[dict[str, Tensor]]:
    """The tensors of each virtual stage of this rank."""
    tracker = (job.checkpoint / "latest_checkpointed_iteration.txt").read_text().strip()
    iteration = job.checkpoint / (tracker if tracker == "release" else f"iter_{int(tracker):07d}")
    # files that lie beside the ranks' directories are nothing to training
    found = sorted(entry.name for entry in iteration.iterdir() if entry.is_dir())
    if found != sorted(job.layout.directories):
        raise CheckpointError(f"{iteration} holds {found}, not {sorted(job.layout.directories)}")
    path = iteration / job.layout.directories[rank] / "model_optim_rng.pt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    # without a version Megatron assumes an older order of linear_qkv, and reorders it
    if content.pop("checkpoint_version", None) != 3.0:
        raise CheckpointError(f"{path} is not of checkpoint_version 3.0")
    names = ["model"] if job.layout.vpp == 1 else [f"model{v}" for v in range(job.layout.vpp)]
    if sorted(content) != names:
        raise CheckpointError(f"{path} holds {sorted(content)}, not {names}")
    return [content[name] for name in names]


def misfits(module: nn.Module | None, tensors: dict[str, Tensor]) -> list[str]:
    """Load the tensors into the module; what does not fit."""
    if module is None:
        return [f"has no layers here, hence no parameters: {sorted(tensors)}"] if tensors else []
    problems = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False).fill_(torch.nan)
        if name in tensors and tensors[name].dtype != parameter.dtype:
            problems.append(f"dtype mismatch for {name}: {tensors[name].dtype}, not {parameter.dtype}")
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        problems.append(str(error))
    return problems


def pipelined(part: Part, modules: list[nn.Module | None], *, rank: int, lanes: int) -> Tensor | None:
    """The output of the whole pipeline on the ranks that hold its end, on the others nothing."""
    here, lane = divmod(rank, lanes)
    hidden: Tensor | None = None
    previous = part.stages[0][1]
    for v, p in part.stages:
        if previous == here != p:
            assert hidden is not None
            dist.send(hidden.contiguous(), dst=p * lanes + lane)
            hidden = None
        if p == here:
            if previous != here:
                hidden = torch.empty(part.hidden_shape)
                dist.recv(hidden, src=previous * lanes + lane)
            module = modules[v]
            assert module is not None
            hidden = part.forward(module.eval(), hidden)
        previous = p
    return hidden
