"""What one process of a Megatron training job does with a converted checkpoint, up to its first forward pass.

It builds the modules of its (tensor, expert, pipeline) rank, fills their parameters with NaN, loads what is theirs,
and takes part in a forward pass of the text decoder and in one of the image encoder, if there is one, handing
activations on by plain send and receive. Expert parallel ranks are data parallel outside the experts, so that each
reads its own share of the token ids, and the experts get tokens from all of them. Never decides whether an output is
right.
"""

from __future__ import annotations

import dataclasses
import functools
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
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron_files import CheckpointError, at_virtual_stage, fill, save_torch_dist
from text_decoder import TextSizes, hidden_shape, text_decoder
from torch import Tensor, nn

REFUSED = 3
"""Exit status of the ranks of a job whose checkpoint does not fit."""


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
    """`text` is a part of the model, whose parameters have a prefix, or the whole of it; `save` may be nothing."""

    checkpoint: Path
    layout: Layout
    text: TextSizes
    text_prefix: str
    vision: VisionSizes | None
    inputs: dict[str, Tensor]
    outputs: Path
    save: Path | None

    @classmethod
    def from_json(cls, line: str) -> Job:
        job = json.loads(line)
        model = json.loads(Path(job["model"]).read_text())
        has_parts = "text_decoder" in model
        return cls(
            checkpoint=Path(job["checkpoint"]),
            layout=Layout(**job["layout"]),
            text=TextSizes(**(model["text_decoder"] if has_parts else model["language_model"])),
            text_prefix="text_decoder." if has_parts else "",
            vision=VisionSizes(**model["image_encoder"]) if "image_encoder" in model else None,
            inputs=torch.load(job["inputs"], weights_only=True),
            outputs=Path(job["outputs"]),
            save=Path(job["save"]) if job["save"] else None,
        )


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
    stages = [stage_of(v, parts, rank, layout) for v in range(layout.vpp)]
    try:
        problems = fill(job.checkpoint, stages, layout.directories, rank)
    except (CheckpointError, OSError) as refusal:
        problems = [str(refusal)]
    everyones: list[list[str]] = [[] for _ in layout.directories]
    dist.all_gather_object(everyones, [f"rank {rank}, {problem}" for problem in problems])
    if any(everyones):
        if rank == 0:
            report.write_text("\n".join(line for lines in everyones for line in lines))
        sys.exit(REFUSED)
    with torch.inference_mode():
        for part in parts:
            modules = [stage[part.prefix] for stage in stages]
            output = pipelined(part, modules, rank=rank, lanes=layout.lanes)
            if output is not None:
                e, t = divmod(rank % layout.lanes, layout.tp)
                torch.save(output.clone(), job.outputs / f"{part.output}_{t}_{e}.pt")
    if job.save:
        save_torch_dist(job.save, stages, rank)
    dist.barrier()
    dist.destroy_process_group()


@dataclasses.dataclass(frozen=True)
class Part:
    """One modality: how its layers are spread, how a range of them is built, and how it is computed."""

    prefix: str
    output: str
    layers: list[list[int]]
    build: Callable[[range, bool, bool, int], nn.Module]
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
        return self.build(layers, number == 0, stage == self.stages[-1], stage[0])


def stage_of(v: int, parts: list[Part], rank: int, layout: Layout) -> dict[str, nn.Module | None]:
    """The modules of this rank in a virtual stage, by the prefix of their parameters."""
    build = {part.prefix: functools.partial(part.module, (v, rank // layout.lanes)) for part in parts}
    return {prefix: at_virtual_stage(v, layout.vpp, module) for prefix, module in build.items()}


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
        prefix=job.text_prefix,
        output="logits",
        layers=job.layout.text,
        build=lambda layers, first, last, v: text_decoder(
            job.text, layers=layers, first=first, last=last, virtual_stage=v
        ),
        forward=decode,
        hidden_shape=hidden_shape(job.text, input_ids),
    )


def vision_part(job: Job, sizes: VisionSizes) -> Part:
    pixels, grid = job.inputs["pixel_values"], job.inputs["grid_thw"]
    return Part(
        prefix="image_encoder.",
        output="image_features",
        layers=job.layout.vision,
        build=lambda layers, first, last, _: ImageEncoder(sizes, layers=len(layers), first=first, last=last),
        forward=lambda module, received: module(pixels if received is None else received, grid),
        hidden_shape=(len(pixels), sizes.hidden_size),
    )


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
