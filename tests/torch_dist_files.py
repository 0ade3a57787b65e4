"""torch_dist checkpoints made of what one rank holds, in the ways in which Megatron-core writes them.

As its `sharded_state_dict` says, and without distconv: parameters of all layers, and of all experts, in one tensor, or
apart; gated linear units in halves; norms under the names of either spec.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.unit.dcp_files import Draft, rows

_EXPERT = re.compile(r"(.*\.mlp\.experts\.)local_experts\.(\d+)\.(.*)")
_LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.(.*)")
_GATED = re.compile(r".*\.linear_fc1\.(weight|bias)")
STACKED, APART, SINGLETONS = "layers and experts in one", "layers apart", "layers, experts and halves apart"
# How the keys of either spec differ from the names of the local one in rank files.
_LOCAL = (
    (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_", ".self_attention.linear_qkv.weight"),
    (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_", ".self_attention.linear_qkv.weight"),
)
_TE = (
    (".input_layernorm.", ".self_attention.linear_qkv.layer_norm_", ".self_attention.linear_qkv.weight"),
    (".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_", ".mlp.linear_fc1.weight"),
    (".q_layernorm.", ".linear_q_up_proj.layer_norm_", ".self_attention.linear_q_up_proj.weight"),
    (".kv_layernorm.", ".linear_kv_up_proj.layer_norm_", ".self_attention.linear_kv_up_proj.weight"),
)


def write_torch_dist(
    directory: Path, model: Mapping[str, torch.Tensor], form: str, *, te: bool = False, prefix: str = ""
) -> Path:
    """Write the tensors of a rank of the local spec as a checkpoint, in a directory that is its iteration."""
    arrays = {name: tensor.numpy() for name, tensor in _with_norms(model, te=te).items()}
    arrays = _experts(arrays, apart=form == SINGLETONS)
    if form == STACKED:
        arrays = _stacked(arrays)
    if form == SINGLETONS:
        arrays = _halved(arrays)
    draft = Draft(others=["decoder.final_layernorm._extra_state/shard_0_1", "rng_state/shard_0.0_1.1"])
    for key, array in arrays.items():
        # A gated unit is two chunks, also where it is not cut.
        cut = _GATED.fullmatch(key) and form == APART and array.ndim == 2
        draft.put(prefix + key, array, "float32", rows(2 if cut else 1, len(array), array.ndim))
    draft.save(directory)
    (directory / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
    )
    return directory


def _with_norms(model: Mapping[str, torch.Tensor], *, te: bool) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in model.items():
        layer = re.match(r"(.*layers\.\d+(\.transformer_layer)?)\.", name)
        key = name
        for old, new, beside in _TE if te else _LOCAL:
            if layer and old in name and layer[1] + beside in model:
                key = name.replace(old, new)
        found[key] = tensor
    return found


def _experts(arrays: Mapping[str, np.ndarray], *, apart: bool) -> dict[str, np.ndarray]:
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if (match := _EXPERT.fullmatch(name)) is None:
            found[name] = array
        elif apart:
            found[f"{match[1]}experts.{match[2]}.{match[3]}"] = array
        else:
            found.setdefault(f"{match[1]}experts.{match[3]}", {})[int(match[2])] = array
    return {
        key: np.stack([each[n] for n in range(len(each))]) if isinstance(each, dict) else each
        for key, each in found.items()
    }


def _stacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = dict(arrays)
    layers: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for name in arrays:
        if match := _LAYER.fullmatch(name):
            layers[match[1] + match[3]][int(match[2])] = found.pop(name)
    count = max(map(len, layers.values()))
    assert all(len(each) == count for each in layers.values()), "layers differ"
    return found | {key: np.stack([each[n] for n in range(count)]) for key, each in layers.items()}


def _halved(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, array in arrays.items():
        halves = np.split(array, 2) if _GATED.fullmatch(name) else [array]
        ends = ("_w", "_v") if len(halves) == 2 else ("",)
        found |= {name + end: half for end, half in zip(ends, halves, strict=True)}
    return found
