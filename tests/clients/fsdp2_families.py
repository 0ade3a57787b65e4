"""Training of tiny models of transformers 5 with FSDP2, one step each, from a DCP that another program wrote.

    python fsdp2_families.py DIRECTORY NAME=CONFIG …
    torchrun … fsdp2_families.py DIRECTORY NAME=CLASS …

The first, with files of configurations, makes `DIRECTORY/NAME/hf`: a random model in bfloat16, but for what its class
keeps in float32, as `save_pretrained` writes it. The second builds each model in float32 from the configuration there,
by the class that it names or by one that is given, shards it, loads `DIRECTORY/NAME/there/release` in place, and leaves

    NAME/unequal.json   names of parameters that are not as `from_pretrained` loads them from NAME/hf
    NAME/dcp            {"model": state dict, "optimizer": its state}, in DTensor shards, after the step
    NAME/trained.pt     the state after the step, unsharded, each tensor rounded as one of NAME/hf is
    NAME/logits.pt      what the sharded model computes of it

A program of its own, that must find transformers 5 first. Knows nothing of converted checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from published_client import arguments
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

State = dict[str, torch.Tensor]


def main(directory: Path, jobs: list[str]) -> None:
    pairs = [job.split("=") for job in jobs]
    if "RANK" not in os.environ:
        for name, config in pairs:
            publish(directory / name / "hf", json.loads(Path(config).read_text()))
        return
    dist.init_process_group("gloo")
    for name, model_class in pairs:
        try:
            train(directory / name, model_class)
        except Exception as error:
            raise RuntimeError(f"training of {name}") from error
    dist.barrier()
    # On its way out, torch with gloo now and then aborts: "terminate called without an active exception".
    os._exit(0)


def publish(directory: Path, content: dict[str, Any]) -> None:
    """Write a model with no two tensors alike, buffers included."""
    config = transformers.AutoConfig.for_model(**content)
    (name,) = content["architectures"]
    model = getattr(transformers, name)._from_config(config, dtype=torch.bfloat16)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # a tied head is its embedding, which is filled twice
        for tensor in model.state_dict().values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=random))
    model.save_pretrained(directory)
    if config.model_type == "qwen2_5_omni":
        # its voices, which the class wants to find, and does not save
        torch.save({}, directory / "spk_dict.pt")


def train(directory: Path, class_name: str) -> None:
    config = transformers.AutoConfig.from_pretrained(directory / "hf")
    model_class = getattr(transformers, class_name or config.architectures[0])
    # of an omni model the thinker, which has a configuration of its own
    config = getattr(config, "thinker_config", config) if class_name else config
    model = model_class(config).float()
    # the part that computes of tokens
    trained = getattr(model, "thinker", model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    # what is within before what is around it
    for module in reversed(list(trained.modules())):
        if type(module).__name__ in (trained._no_split_modules or ()):
            fully_shard(module, mesh=mesh)
    fully_shard(trained, mesh=mesh)
    dcp.load({"model": model.state_dict()}, checkpoint_id=directory / "there" / "release")
    original = transformers_state(model_class, directory / "hf", torch.float32)
    loaded = whole(model.state_dict())
    unequal = [name for name in {*loaded, *original} if not same(loaded.get(name), original.get(name))]

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    inputs = arguments(trained, "")
    logits = trained(**inputs).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["input_ids"].flatten()).backward()
    for parameter in model.parameters():
        # What tokens do not reach moves as well, so that whatever is not of the training shows.
        if parameter.grad is None:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state, moments = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id=directory / "dcp")

    dtypes = {name: each.dtype for name, each in transformers_state(model_class, directory / "hf", "auto").items()}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(tensor.to(dtypes[name]).float())
        logits = trained.eval()(**inputs).logits
    rounded = whole(model.state_dict())
    if dist.get_rank() == 0:
        (directory / "unequal.json").write_text(json.dumps(sorted(unequal)))
        torch.save(rounded, directory / "trained.pt")
        torch.save(logits, directory / "logits.pt")


def transformers_state(model_class: Any, checkpoint: Path, dtype: Any) -> State:
    return model_class.from_pretrained(checkpoint, dtype=dtype).state_dict()


def whole(state: State) -> State:
    return {name: each.full_tensor() if isinstance(each, DTensor) else each.clone() for name, each in state.items()}


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
