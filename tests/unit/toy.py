"""A small model with everything that definitions can say, its checkpoint, and its conversion written out by hand.

The model is a mixture of experts, whose first layer is dense, with a vision encoder. No two sizes that could be mixed
up are equal, and each element of the checkpoint says where it comes from. `converted` shares no code with distconv.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from distconv.layout.layout import CompleteLayout
from distconv.models.bind import bind
from distconv.models.definition import Definition
from distconv.models.definition_parser import parse_definition
from distconv.models.parameters import Binding
from distconv.models.sizes import Sizes
from distconv.tensors.stored import SourceFile, SourceIndex, StoredTensor

LAYERS, VISION_LAYERS, EXPERTS = 3, 2, 4
HIDDEN, HEADS, GROUPS, MLP, FFN, VOCABULARY = 16, 8, 4, 12, 20, 30
VISION_WIDTH, VISION_HEADS, CHANNELS = 24, 8, 5

_CONTENT: Mapping[str, Any] = {
    "model_types": ["toy"],
    "renamed_prefixes": [["model.visual.", "visual."], ["model.language_model.", "model."]],
    "sizes": {
        "hidden": ["text_config.hidden_size", "hidden_size"],
        "layers": ["num_hidden_layers"],
        "mtp_layers": ["num_nextn_predict_layers", 0],
        "heads": ["num_attention_heads"],
        "groups": ["num_key_value_heads"],
        "head_dim": ["quotient", "hidden", "heads"],
        "kv_rows": ["product", "groups", "head_dim"],
        "mlp": ["intermediate_size"],
        "ffn": ["moe_intermediate_size"],
        "n_experts": ["num_experts"],
        "vocabulary": ["vocab_size"],
        "vision_layers": ["vision_config.depth"],
        "vision_width": ["vision_config.width"],
        "vision_heads": ["vision_config.heads"],
        "vision_qkv": ["product", 3, "vision_width"],
        "channels": ["vision_config.channels", CHANNELS],
    },
    "lists": {"deep": ["vision_config.deep", [1]]},
    "modalities": {"text": {"layers": "layers"}, "vision": {"layers": "vision_layers"}},
    "experts": "n_experts",
    "tied": {
        "flag": ["tie_word_embeddings", False],
        "embedding": "text.embedding.weight",
        "head": "text.head.weight",
    },
    "rules": {
        "vision": {
            "embedding": [
                {
                    "target": "vision.patch.weight",
                    "sources": [["visual.patch.weight", "vision_width", "channels", 2, "any"]],
                    "tp": "replicated",
                    "stage": "first",
                }
            ],
            "blocks": [
                {
                    "target": "vision.layers.{layer}.qkv.{weight,bias}",
                    "sources": [["visual.blocks.{layer}.qkv.{weight,bias}", "vision_qkv", "vision_width"]],
                    "operator": ["qkv_heads", "vision_heads"],
                    "tp": ["rows", "vision_heads"],
                },
                {
                    "target": "vision.layers.{layer}.proj.{weight,bias}",
                    "sources": [["visual.blocks.{layer}.proj.{weight,bias}", "vision_width", "vision_width"]],
                    "tp": ["cols", "vision_heads"],
                },
            ],
            "deep": [
                {
                    "target": "vision.layers.{layer}.deep.weight",
                    "sources": [["visual.deep.{item}.weight", "vision_width"]],
                    "layers": "deep",
                }
            ],
            "projector": [
                {
                    "target": "vision.projector.weight",
                    "sources": [["visual.merger.weight", "hidden", "vision_width"]],
                    "tp": "rows",
                    "stage": "last",
                }
            ],
        },
        "text": {
            "embedding": [
                {
                    "target": "text.embedding.weight",
                    "sources": [["model.embed.weight", "vocabulary", "hidden"]],
                    "tp": "rows_uneven",
                    "stage": "first",
                },
                {
                    "target": "text.positions.weight",
                    "sources": [["model.positions.weight", "hidden"]],
                    "stage": "every",
                    "optional": True,
                },
            ],
            "attention": [
                {
                    "target": "text.layers.{layer}.norm.{weight,bias?}",
                    "sources": [["model.layers.{layer}.norm.{weight,bias?}", "hidden"]],
                },
                {
                    "target": "text.layers.{layer}.qkv.{weight,bias}",
                    "sources": [
                        ["model.layers.{layer}.q.{weight,bias}", "hidden", "hidden"],
                        ["model.layers.{layer}.k.{weight,bias}", "kv_rows", "hidden"],
                        ["model.layers.{layer}.v.{weight,bias}", "kv_rows", "hidden"],
                    ],
                    "operator": ["qkv_group", "groups"],
                    "tp": ["rows", "groups"],
                },
            ],
            "mlp": [
                {
                    "one_of": {
                        "dense": [
                            {
                                "target": "text.layers.{layer}.mlp.fc1.weight",
                                "sources": [["model.layers.{layer}.mlp.up.weight", "mlp", "hidden"]],
                                "tp": "rows",
                            },
                            {
                                "target": "text.layers.{layer}.mlp.fc2.weight",
                                "sources": [["model.layers.{layer}.mlp.down.weight", "hidden", "mlp"]],
                                "tp": "cols",
                            },
                        ],
                        "experts": [
                            {
                                "target": "text.layers.{layer}.router.weight",
                                "sources": [["model.layers.{layer}.router.weight", "n_experts", "hidden"]],
                                "tp": "replicated",
                            },
                            {
                                "target": "text.layers.{layer}.experts.{expert}.fc1.weight",
                                "sources": [
                                    ["model.layers.{layer}.experts.{expert}.gate.weight", "ffn", "hidden"],
                                    ["model.layers.{layer}.experts.{expert}.up.weight", "ffn", "hidden"],
                                ],
                                "operator": "concat",
                                "tp": "glu",
                            },
                            # All experts in one tensor, input dim before output dim.
                            {
                                "target": "text.layers.{layer}.experts.{expert}.fc2.weight",
                                "sources": [["model.layers.{layer}.experts.down", "n_experts", "ffn", "hidden"]],
                                "operator": "transpose",
                                "tp": "cols",
                            },
                        ],
                    }
                }
            ],
            "head": [
                {"target": "text.final.weight", "sources": [["model.norm.weight", "hidden"]], "stage": "last"},
                {
                    "target": "text.head.weight",
                    "sources": [["lm_head.weight", "vocabulary", "hidden"]],
                    "tp": "rows_uneven",
                    "stage": "last",
                },
            ],
        },
    },
    "ignore": [
        {"names": "*.inv_freq", "reason": "rebuilt by the training side"},
        {"names": "model.layers.{layer}.mtp.*", "layers": ["layers", "mtp_layers"], "reason": "not trained"},
    ],
}

_CONFIG: Mapping[str, Any] = {
    "model_type": "toy",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "intermediate_size": MLP,
    "moe_intermediate_size": FFN,
    "num_experts": EXPERTS,
    "vocab_size": VOCABULARY,
    "vision_config": {"depth": VISION_LAYERS, "width": VISION_WIDTH, "heads": VISION_HEADS},
}


def content() -> dict[str, Any]:
    """The content of the definition's YAML file, to be changed at will."""
    return copy.deepcopy(dict(_CONTENT))


def config(**changes: Any) -> dict[str, Any]:
    """The `config.json` of the model."""
    return {**copy.deepcopy(dict(_CONFIG)), **changes}


def definition(changed: Mapping[str, Any] | None = None) -> Definition:
    """The definition: always the same object, as its rules are compared by identity; or one of changed content.

    One of adapters alone comes without the sizes of its base.
    """
    return _definition() if changed is None else parse_definition("toy", changed).without_base()


@functools.cache
def _definition() -> Definition:
    return parse_definition("toy", _CONTENT)


def shapes(*, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Every source tensor with its shape: the first layer is dense, the head is stored, what is optional is not."""
    key_rows = HIDDEN // HEADS * GROUPS
    found: dict[str, tuple[int, ...]] = {
        "visual.patch.weight": (VISION_WIDTH, CHANNELS, 2, 3),
        "visual.deep.0.weight": (VISION_WIDTH,),
        "visual.merger.weight": (HIDDEN, VISION_WIDTH),
        "model.embed.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(VISION_LAYERS):
        found[f"visual.blocks.{layer}.qkv.weight"] = (3 * VISION_WIDTH, VISION_WIDTH)
        found[f"visual.blocks.{layer}.qkv.bias"] = (3 * VISION_WIDTH,)
        found[f"visual.blocks.{layer}.proj.weight"] = (VISION_WIDTH, VISION_WIDTH)
        found[f"visual.blocks.{layer}.proj.bias"] = (VISION_WIDTH,)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found[f"{at}.norm.weight"] = (HIDDEN,)
        for part, rows in (("q", HIDDEN), ("k", key_rows), ("v", key_rows)):
            found[f"{at}.{part}.weight"] = (rows, HIDDEN)
            found[f"{at}.{part}.bias"] = (rows,)
        if layer == 0:
            found[f"{at}.mlp.up.weight"] = (MLP, HIDDEN)
            found[f"{at}.mlp.down.weight"] = (HIDDEN, MLP)
            continue
        found[f"{at}.router.weight"] = (EXPERTS, HIDDEN)
        found[f"{at}.experts.down"] = (EXPERTS, FFN, HIDDEN)
        for expert in range(EXPERTS):
            found[f"{at}.experts.{expert}.gate.weight"] = (FFN, HIDDEN)
            found[f"{at}.experts.{expert}.up.weight"] = (FFN, HIDDEN)
    return found


def arrays(given: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, np.ndarray]:
    """The elements of the checkpoint: no two are equal."""
    found: dict[str, np.ndarray] = {}
    first = 1
    for name, shape in (given or shapes()).items():
        found[name] = np.arange(first, first + prod(shape), dtype=np.int64).reshape(shape)
        first += prod(shape)
    return found


def index(given: Mapping[str, tuple[int, ...]] | None = None, **dtypes: str) -> SourceIndex:
    """The source index of tensors with these shapes: bfloat16, but for the names in `dtypes`."""
    file = SourceFile("/hf/model.safetensors", 1 << 30)
    tensors = {}
    offset = 0
    for name, shape in (shapes() if given is None else given).items():
        tensors[name] = StoredTensor(name, dtypes.get(name, "bfloat16"), tuple(shape), file, offset)
        offset += tensors[name].nbytes
    return SourceIndex(directory="/hf", tensors=tensors)


def bound(
    given: Mapping[str, tuple[int, ...]] | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    left_out: Callable[..., str | None] = lambda _: None,
    dtypes: Mapping[str, str] | None = None,
    **changes: Any,
) -> Binding:
    """The binding of a checkpoint with these shapes; `changes` are to its `config.json`, `model` is the definition."""
    found = definition(model)
    sizes = Sizes(found.sizes, config(**changes), "/hf/config.json")
    return bind(found, sizes, index(given, **(dtypes or {})), left_out)


Contents = dict[str, dict[str, dict[str, np.ndarray]]]


def converted(source: Mapping[str, np.ndarray], layout: CompleteLayout) -> Contents:
    """What each file holds, by path, key and name, for layouts with sequential placement."""
    ranks = max([layout.tp, *layout.modality_tp.values()])
    vision_tp = layout.modality_tp.get("vision", layout.tp)
    files: Contents = {}
    for tp_rank in range(ranks):
        text, vision = (tp_rank % layout.tp, layout.tp), (tp_rank % vision_tp, vision_tp)
        for pp_rank in range(layout.pp):
            for ep_rank in range(layout.ep):
                path = f"mp_rank_{tp_rank:02d}"
                path += f"_{pp_rank:03d}" if layout.pp > 1 else ""
                path += f"_{ep_rank:03d}" if layout.ep > 1 else ""
                files[f"{path}/model_optim_rng.pt"] = {
                    f"model{virtual_stage}" if layout.vpp > 1 else "model": {
                        **_vision(source, layout, virtual_stage, pp_rank, *vision),
                        **_text(source, layout, virtual_stage, pp_rank, ep_rank, *text),
                    }
                    for virtual_stage in range(layout.vpp)
                }
    return files


def _held(rows: tuple[tuple[int, ...], ...], virtual_stage: int, pp_rank: int) -> tuple[range, bool, bool]:
    """The layers of a stage, and whether it is the first and the last with any."""
    flat = [layers for row in rows for layers in row]
    position = virtual_stage * len(rows[0]) + pp_rank % len(rows[0])
    start = sum(flat[:position])
    held = range(start, start + flat[position])
    return held, bool(held) and start == 0, bool(held) and held.stop == sum(flat)


def _vision(
    source: Mapping[str, np.ndarray], layout: CompleteLayout, virtual_stage: int, pp_rank: int, rank: int, size: int
) -> dict[str, np.ndarray]:
    held, first, last = _held(layout.stages["vision"], virtual_stage, pp_rank)
    found = {}
    if first:
        found["vision.patch.weight"] = source["visual.patch.weight"]
    for local, layer in enumerate(held):
        at = f"visual.blocks.{layer}"
        for kind in ("weight", "bias"):
            fused = source[f"{at}.qkv.{kind}"]
            by_head = fused.reshape(3, VISION_HEADS, -1, *fused.shape[1:]).swapaxes(0, 1).reshape(fused.shape)
            found[f"vision.layers.{local}.qkv.{kind}"] = np.split(by_head, size)[rank]
        found[f"vision.layers.{local}.proj.weight"] = np.split(source[f"{at}.proj.weight"], size, axis=1)[rank]
        found[f"vision.layers.{local}.proj.bias"] = source[f"{at}.proj.bias"]
        if layer == 1:
            found[f"vision.layers.{local}.deep.weight"] = source["visual.deep.0.weight"]
    if last:
        found["vision.projector.weight"] = np.split(source["visual.merger.weight"], size)[rank]
    return found


def _text(
    source: Mapping[str, np.ndarray],
    layout: CompleteLayout,
    virtual_stage: int,
    pp_rank: int,
    ep_rank: int,
    rank: int,
    size: int,
) -> dict[str, np.ndarray]:
    held, first, last = _held(layout.stages["text"], virtual_stage, pp_rank)
    found = {}
    if first:
        found["text.embedding.weight"] = np.array_split(source["model.embed.weight"], size)[rank]
    if "model.positions.weight" in source:
        found["text.positions.weight"] = source["model.positions.weight"]
    for local, layer in enumerate(held):
        at, to = f"model.layers.{layer}", f"text.layers.{local}"
        for kind in ("weight", "bias"):
            if f"{at}.norm.{kind}" in source:
                found[f"{to}.norm.{kind}"] = source[f"{at}.norm.{kind}"]
            parts = [np.split(source[f"{at}.{part}.{kind}"], GROUPS) for part in "qkv"]
            grouped = np.concatenate([rows for group in zip(*parts, strict=True) for rows in group])
            found[f"{to}.qkv.{kind}"] = np.split(grouped, size)[rank]
        if layer == 0:
            found[f"{to}.mlp.fc1.weight"] = np.split(source[f"{at}.mlp.up.weight"], size)[rank]
            found[f"{to}.mlp.fc2.weight"] = np.split(source[f"{at}.mlp.down.weight"], size, axis=1)[rank]
            continue
        found[f"{to}.router.weight"] = source[f"{at}.router.weight"]
        local_experts = EXPERTS // layout.ep
        for local_expert in range(local_experts):
            expert = ep_rank * local_experts + local_expert
            gate, up = (np.split(source[f"{at}.experts.{expert}.{part}.weight"], size)[rank] for part in ("gate", "up"))
            found[f"{to}.experts.{local_expert}.fc1.weight"] = np.concatenate([gate, up])
            down = source[f"{at}.experts.down"][expert].T
            found[f"{to}.experts.{local_expert}.fc2.weight"] = np.split(down, size, axis=1)[rank]
    if last:
        found["text.final.weight"] = source["model.norm.weight"]
        if "lm_head.weight" in source:
            found["text.head.weight"] = np.array_split(source["lm_head.weight"], size)[rank]
    return found
