"""What tests of language models in megatron-core share: its releases, layouts, and how closely it has to compute.

Starts no program.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from training import Layout

# Each in a process of its own, with .venv/side/megatron-core-RELEASE in front where it is not that of .venv.
RELEASES = ("0.12.1", "0.16.1", "0.19.2")
# Of as many layers on each stage, as megatron-core itself divides them: its torch_dist numbers them so.
LAYOUTS = {
    "tp1": Layout(text=[[4]]),
    "tp2": Layout(tp=2, text=[[4]]),
    "pp2": Layout(text=[[2, 2]]),
    "vpp2": Layout(text=[[1, 1], [1, 1]]),
    "ep2": Layout(ep=2, text=[[4]]),
    "tp2_pp2_vpp2": Layout(tp=2, text=[[1, 1], [1, 1]]),
    "tp2_ep2": Layout(tp=2, ep=2, text=[[4]]),
    "ep2_pp2": Layout(ep=2, text=[[2, 2]]),
}
# 8e-6 was seen, in logits of a standard deviation of one; the rest is a margin for other machines.
CLOSE = 5e-5


def assert_published_alike(found: Path, expected: Path) -> None:
    """Two published directories have the same tensors, to the bit."""
    assert_same_bits(_tensors(found), _tensors(expected))


def assert_same_bits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [
        name for name, each in expected.items() if found[name].dtype != each.dtype or not torch.equal(found[name], each)
    ]
    assert different == []


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}
