"""A training of published models with FSDP2, started by torchrun: one step of each, then `dcp.save`.

    torchrun … fsdp2_qwen.py NAME=CHECKPOINT=INPUTS …

with inputs as `published_client.py` has them, or none, leaves for each in the working directory

    NAME/dcp            {"model": state dict, "optimizer": its state}, in DTensor shards
    NAME/wrapped        the same of the model in a module `module` that was compiled
    NAME/logits.pt      what the trained model computes from the inputs
    NAME/trained.pt     its parameters, unsharded

Knows nothing of converted checkpoints.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from published_client import arguments
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText


def main(jobs: list[str]) -> None:
    dist.init_process_group("gloo")
    for job in jobs:
        name, checkpoint, inputs = job.split("=")
        train(Path(name), checkpoint, inputs)
    dist.barrier()
    # On its way out, torch with gloo now and then aborts: "terminate called without an active exception".
    os._exit(0)


def train(directory: Path, checkpoint: str, inputs_file: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    inputs = arguments(model, inputs_file)
    for block in (*model.model.language_model.layers, *model.model.visual.blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    state, moments = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id=directory / "dcp")
    wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}
    dcp.save({"model": wrapped, "optimizer": moments}, checkpoint_id=directory / "wrapped")
    with torch.inference_mode():
        logits = model.eval()(**inputs).logits
    whole = {name: tensor.full_tensor() for name, tensor in state.items()}
    if dist.get_rank() == 0:
        torch.save(logits, directory / "logits.pt")
        torch.save(whole, directory / "trained.pt")


if __name__ == "__main__":
    main(sys.argv[1:])
