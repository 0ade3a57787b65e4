"""A training with FSDP2, started by torchrun: one step, then model and optimizer are saved as DTensor shards.

`python fsdp2_training.py DIRECTORY` leaves `DIRECTORY/dcp`, and in `DIRECTORY/whole.pt` what the model was, unsharded.
Its sizes are such that ranks hold unequal shards, and some hold nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6, dtype=torch.bfloat16) for _ in range(3))
        self.norm = torch.nn.LayerNorm(6)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden.to(torch.bfloat16)).float()
        logits: torch.Tensor = self.head(self.norm(hidden) * self.scale)
        return logits


def train(directory: Path) -> None:
    """One step on every rank, and its checkpoint."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = Model()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.arange(11)).square().mean().backward()
    optimizer.step()
    state, moments = get_state_dict(model, optimizer)
    # A file for each tensor, as large trainings write them.
    writer = dcp.FileSystemWriter(directory / "dcp", single_file_per_rank=False)
    dcp.save({"model": state, "optim": moments, "checkpoint_version": 3.0}, storage_writer=writer)
    whole = {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in state.items()}
    if dist.get_rank() == 0:
        torch.save(whole, directory / "whole.pt")
    dist.barrier()
    # On its way out, torch with gloo now and then aborts: "terminate called without an active exception".
    os._exit(0)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
