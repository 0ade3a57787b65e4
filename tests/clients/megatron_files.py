"""Filling the modules of one process of a Megatron job from a checkpoint, strictly, and saving them as torch_dist.

Each virtual stage is a mapping from prefixes of names to modules, or to nothing where a stage has no layers of a part.
Leaves no tensor of a checkpoint unaccounted for, and knows no model.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor, nn

TRACKER = "latest_checkpointed_iteration.txt"
# without it Megatron assumes an older order of linear_qkv, and reorders it
CHECKPOINT_VERSION = 3.0

Stage = Mapping[str, nn.Module | None]


class CheckpointError(Exception):
    """The checkpoint is not what the training side loads."""


def fill(checkpoint: Path, stages: Sequence[Stage], directories: Sequence[str], rank: int) -> list[str]:
    """Load the latest iteration, torch_dist or `mp_rank` directories, as Megatron tells them apart; what does not fit.

    Takes part in a collective operation where it is torch_dist.
    """
    tracker = (checkpoint / TRACKER).read_text().strip()
    iteration = checkpoint / (tracker if tracker == "release" else f"iter_{int(tracker):07d}")
    for stage in stages:
        for module in stage.values():
            for parameter in module.parameters() if module else ():
                parameter.requires_grad_(False).fill_(torch.nan)
    if (iteration / "metadata.json").exists():
        return fill_from_torch_dist(iteration, stages)
    return fill_from_ranks(iteration, stages, directories, rank)


def fill_from_ranks(iteration: Path, stages: Sequence[Stage], directories: Sequence[str], rank: int) -> list[str]:
    problems = []
    for v, (stage, chunk) in enumerate(zip(stages, read(iteration, len(stages), directories, rank), strict=True)):
        for prefix, module in stage.items():
            tensors = {name.removeprefix(prefix): chunk.pop(name) for name in sorted(chunk) if name.startswith(prefix)}
            where = f"virtual stage {v}, {prefix.rstrip('.') or 'model'}"
            problems += [f"{where}: {problem}" for problem in misfits(module, tensors)]
        if chunk:
            problems.append(f"virtual stage {v}: of no part: {sorted(chunk)}")
    return problems


def read(iteration: Path, stages: int, directories: Sequence[str], rank: int) -> list[dict[str, Tensor]]:
    """The tensors of each virtual stage of this rank."""
    # files that lie beside the ranks' directories are nothing to training
    found = sorted(entry.name for entry in iteration.iterdir() if entry.is_dir())
    if found != sorted(directories):
        raise CheckpointError(f"{iteration} holds {found}, not {sorted(directories)}")
    path = iteration / directories[rank] / "model_optim_rng.pt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    if content.pop("checkpoint_version", None) != CHECKPOINT_VERSION:
        raise CheckpointError(f"{path} is not of checkpoint_version {CHECKPOINT_VERSION}")
    names = chunk_names(stages)
    if sorted(content) != names:
        raise CheckpointError(f"{path} holds {sorted(content)}, not {names}")
    return [content[name] for name in names]


def misfits(module: nn.Module | None, tensors: dict[str, Tensor]) -> list[str]:
    """Load the tensors into the module; what does not fit."""
    if module is None:
        return [f"has no layers here, hence no parameters: {sorted(tensors)}"] if tensors else []
    problems = [
        f"dtype mismatch for {name}: {tensors[name].dtype}, not {parameter.dtype}"
        for name, parameter in module.named_parameters()
        if name in tensors and tensors[name].dtype != parameter.dtype
    ]
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        problems.append(str(error))
    return problems


def fill_from_torch_dist(iteration: Path, stages: Sequence[Stage]) -> list[str]:
    """With no key of the checkpoint that the model does not ask for, and none the other way around.

    As under `raise_all`, but that what is wrong on one rank does not leave the others waiting.
    """
    try:
        state, missing, unexpected = dist_checkpointing.load(sharded(stages), str(iteration), strict="return_all")
    except CheckpointingException as error:
        return [str(error)]
    # in its words, unexpected is what the checkpoint lacks
    if missing or unexpected:
        return [f"nothing asks for {sorted(missing)}; the checkpoint has no {sorted(unexpected)}"]
    if state.get("checkpoint_version") != CHECKPOINT_VERSION:
        raise CheckpointError(f"{iteration} is not of checkpoint_version {CHECKPOINT_VERSION}")
    if problems := contradictions(state["args"], modules_of(stages)[0].config):
        return problems
    for name, module in zip(chunk_names(len(stages)), modules_of(stages), strict=True):
        module.load_state_dict(state[name], strict=True)
    return []


def contradictions(arguments: argparse.Namespace, config: object) -> list[str]:
    """What arguments that are of the model, and not of how it is spread, say otherwise than its configuration."""
    of_model = {name: value for name, value in vars(arguments).items() if not name.endswith("parallel_size")}
    # of which 0.12 has a default, and the models here have no need
    of_model.pop("max_position_embeddings", None)
    return [
        f"args: {name} is {value}, not {getattr(config, name)}"
        for name, value in of_model.items()
        if value != getattr(config, name, value)
    ]


def save_torch_dist(checkpoint: Path, stages: Sequence[Stage], rank: int) -> None:
    """Save iteration 7 as training does, without optimizer."""
    iteration = checkpoint / "iter_0000007"
    if rank == 0:
        iteration.mkdir(parents=True)
        (checkpoint / TRACKER).write_text("7")
    dist.barrier()
    common = {"args": argparse.Namespace(iteration=7), "checkpoint_version": CHECKPOINT_VERSION, "iteration": 7}
    # of this process and those that write for it; megatron-core since 0.13 starts another Python for it
    filesystem_async._results_queue = multiprocessing.get_context("fork").Manager().Queue()
    dist_checkpointing.save({**common, **sharded(stages)}, str(iteration))


def sharded(stages: Sequence[Stage]) -> dict[str, Any]:
    names = chunk_names(len(stages))
    return {
        names[v]: at_virtual_stage(v, len(stages), module.sharded_state_dict)
        for v, module in enumerate(modules_of(stages))
    }


def modules_of(stages: Sequence[Stage]) -> list[Any]:
    """The model of each virtual stage, which torch_dist checkpoints here have one of, without a prefix."""
    assert all(list(stage) == [""] for stage in stages)
    return [stage[""] for stage in stages]


def chunk_names(stages: int) -> list[str]:
    return ["model"] if stages == 1 else [f"model{v}" for v in range(stages)]


def at_virtual_stage(number: int, stages: int, action: Callable[[], Any]) -> Any:
    """What an action gives that asks for the number of the virtual stage in older releases of megatron-core."""
    if stages > 1:
        parallel_state.set_virtual_pipeline_model_parallel_rank(number)
    return action()
