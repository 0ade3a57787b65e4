"""Convert Qwen2-VL to Megatron the plain way: load everything, merge, split, save. A yardstick, not a tool.

    python benchmarks/plain_converter.py SOURCE TARGET --tp 2 --text-stages 7,7,7,7 --vision-stages 32,0,0,0

This is the shape that converters usually have: one dictionary with the whole model, rewritten in place, cloned for
every tensor-parallel rank, saved with torch.save. What it writes is right (the same tensors, bit for bit, as distconv
writes for the same layout), so the two can be compared. It shares no code with distconv, and never tries to save
memory: it needs room for the model more than twice.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]

EMBEDDING = "text_decoder.embedding.word_embeddings.weight"
HEAD = "text_decoder.output_layer.weight"
VISION_LAYER = "image_encoder.encoder.blocks.layers."
TEXT_LAYER = "text_decoder.decoder.layers."

RENAMES = {
    r"visual\.patch_embed\.": "image_encoder.encoder.patch_embed.",
    r"visual\.blocks\.(\d+)\.norm1\.": VISION_LAYER + r"\1.input_layernorm.",
    r"visual\.blocks\.(\d+)\.norm2\.": VISION_LAYER + r"\1.pre_mlp_layernorm.",
    r"visual\.blocks\.(\d+)\.attn\.qkv\.": VISION_LAYER + r"\1.self_attention.linear_qkv.",
    r"visual\.blocks\.(\d+)\.attn\.proj\.": VISION_LAYER + r"\1.self_attention.linear_proj.",
    r"visual\.blocks\.(\d+)\.mlp\.fc([12])\.": VISION_LAYER + r"\1.mlp.linear_fc\2.",
    r"visual\.merger\.ln_q\.": "image_encoder.projector.layernorm.",
    r"visual\.merger\.mlp\.0\.": "image_encoder.projector.encoder.linear_fc1.",
    r"visual\.merger\.mlp\.2\.": "image_encoder.projector.encoder.linear_fc2.",
    r"model\.embed_tokens\.weight": EMBEDDING,
    r"model\.layers\.(\d+)\.input_layernorm\.": TEXT_LAYER + r"\1.input_layernorm.",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.": TEXT_LAYER + r"\1.pre_mlp_layernorm.",
    r"model\.layers\.(\d+)\.self_attn\.qkv\.": TEXT_LAYER + r"\1.self_attention.linear_qkv.",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.": TEXT_LAYER + r"\1.self_attention.linear_proj.",
    r"model\.layers\.(\d+)\.mlp\.gate_up\.": TEXT_LAYER + r"\1.mlp.linear_fc1.",
    r"model\.layers\.(\d+)\.mlp\.down_proj\.": TEXT_LAYER + r"\1.mlp.linear_fc2.",
    r"model\.norm\.": "text_decoder.decoder.final_layernorm.",
    r"lm_head\.weight": HEAD,
}


@dataclass(frozen=True, kw_only=True)
class Modality:
    """Where the parameters of one modality go: name prefixes, and the layers of each pipeline stage."""

    first: tuple[str, ...]
    layer: str
    last: tuple[str, ...]
    stages: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, int]:
        """The stages with the first and with the last layer."""
        busy = [stage for stage, layers in enumerate(self.stages) if layers]
        return busy[0], busy[-1]

    def local_name(self, name: str, stage: int) -> str | None:
        """Give the name that a parameter has on a stage; None if it is not there."""
        first_stage, last_stage = self.ends
        if (name.startswith(self.first) and stage == first_stage) or (
            name.startswith(self.last) and stage == last_stage
        ):
            return name
        if name.startswith(self.layer):
            number, rest = name[len(self.layer) :].split(".", 1)
            local = int(number) - sum(self.stages[:stage])
            if 0 <= local < self.stages[stage]:
                return f"{self.layer}{local}.{rest}"
        return None


def load(source: Path) -> Tensors:
    """Load all shards into one dictionary."""
    index = json.loads((source / "model.safetensors.index.json").read_text(encoding="utf-8"))
    tensors: Tensors = {}
    for shard in sorted(set(index["weight_map"].values())):
        tensors |= load_file(source / shard)
    return tensors


def merge(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Fuse and interleave what Megatron keeps in one parameter, and give everything its Megatron name."""
    groups = config["num_key_value_heads"]
    heads = config["vision_config"]["num_heads"]
    for layer in range(config["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{attention}.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"{attention}.qkv.{kind}"] = interleave(parts, groups)
        mlp = f"model.layers.{layer}.mlp"
        gate, up = (tensors.pop(f"{mlp}.{part}_proj.weight") for part in ("gate", "up"))
        tensors[f"{mlp}.gate_up.weight"] = torch.cat([gate, up])
    for layer in range(config["vision_config"]["depth"]):
        for kind in ("weight", "bias"):
            name = f"visual.blocks.{layer}.attn.qkv.{kind}"
            tensors[name] = interleave(tensors[name].chunk(3), heads)
    return {rename(name): tensor for name, tensor in tensors.items()}


def interleave(parts: Sequence[Tensor], groups: int) -> Tensor:
    """Cut each part into groups of rows; join the first groups of all, then the second ones, and so on."""
    columns = parts[0].shape[1:]
    return torch.cat([part.reshape(groups, -1, *columns) for part in parts], dim=1).reshape(-1, *columns)


def rename(name: str) -> str:
    """Give the Megatron name of a tensor."""
    for pattern, replacement in RENAMES.items():
        renamed, matches = re.subn(f"^{pattern}", replacement, name)
        if matches:
            return renamed
    raise ValueError(f"no rule for the tensor {name}")


def split(tensors: Tensors, tp: int) -> list[Tensors]:
    """Give each tensor-parallel rank its part."""
    if tp == 1:
        return [tensors]
    ranks: list[Tensors] = [{} for _ in range(tp)]
    for name, tensor in tensors.items():
        for rank, part in zip(ranks, splitter(name)(tensor, tp), strict=True):
            rank[name] = part
    return ranks


def splitter(name: str) -> Callable[[Tensor, int], list[Tensor]]:
    """Choose the tensor-parallel rule of a parameter."""
    if re.fullmatch(rf"{re.escape(TEXT_LAYER)}\d+\.mlp\.linear_fc1\.weight", name):
        return split_gated
    if name in {EMBEDDING, HEAD} or re.search(r"\.linear_(qkv|fc1)\.(weight|bias)$", name):
        return split_rows
    if re.search(r"\.linear_(proj|fc2)\.weight$", name):
        return split_columns
    return replicate


def split_rows(tensor: Tensor, tp: int) -> list[Tensor]:
    """Cut into equal blocks of rows."""
    return equal_parts(tensor, tp, dim=0)


def split_columns(tensor: Tensor, tp: int) -> list[Tensor]:
    """Cut into equal blocks of columns."""
    return equal_parts(tensor, tp, dim=1)


def split_gated(tensor: Tensor, tp: int) -> list[Tensor]:
    """Cut gate and up, which lie above each other, alike."""
    gate, up = (half.chunk(tp) for half in tensor.chunk(2))
    return [torch.cat(pair) for pair in zip(gate, up, strict=True)]


def replicate(tensor: Tensor, tp: int) -> list[Tensor]:
    """Give every rank the whole tensor."""
    return [tensor] * tp


def equal_parts(tensor: Tensor, tp: int, dim: int) -> list[Tensor]:
    """Cut one dimension; the parts are copies, for torch.save stores all of the tensor that a view belongs to."""
    if tensor.shape[dim] % tp:
        raise ValueError(f"a size of {tensor.shape[dim]} cannot be cut into {tp} equal parts")
    return [part.clone(memory_format=torch.contiguous_format) for part in tensor.chunk(tp, dim)]


def partition(tensors: Tensors, modalities: Sequence[Modality]) -> list[Tensors]:
    """Give each pipeline stage its parameters, layers numbered from zero."""
    stages: list[Tensors] = [{} for _ in modalities[0].stages]
    for name, tensor in tensors.items():
        for stage, parameters in enumerate(stages):
            for modality in modalities:
                local_name = modality.local_name(name, stage)
                if local_name:
                    parameters[local_name] = tensor
    return stages


def save(target: Path, ranks: Sequence[Sequence[Tensors]]) -> None:
    """Write one file per tensor-parallel rank and pipeline stage, and the tracker file."""
    for tp_rank, stages in enumerate(ranks):
        for stage, parameters in enumerate(stages):
            name = f"mp_rank_{tp_rank:02d}" + (f"_{stage:03d}" if len(stages) > 1 else "")
            directory = target / "release" / name
            directory.mkdir(parents=True)
            torch.save({"model": parameters, "checkpoint_version": 3.0}, directory / "model_optim_rng.pt")
    (target / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")


def modalities_of(config: dict[str, Any], text: tuple[int, ...], vision: tuple[int, ...]) -> tuple[Modality, Modality]:
    """Check the stage lists against the model."""
    if len(text) != len(vision):
        raise ValueError(f"{len(text)} text stages, but {len(vision)} vision stages")
    for kind, stages, layers in (
        ("text", text, config["num_hidden_layers"]),
        ("vision", vision, config["vision_config"]["depth"]),
    ):
        if sum(stages) != layers:
            raise ValueError(f"the {kind} stages {list(stages)} hold {sum(stages)} layers, the model has {layers}")
    return (
        Modality(
            first=(EMBEDDING,), layer=TEXT_LAYER, last=("text_decoder.decoder.final_layernorm.", HEAD), stages=text
        ),
        Modality(
            first=("image_encoder.encoder.patch_embed.",),
            layer=VISION_LAYER,
            last=("image_encoder.projector.",),
            stages=vision,
        ),
    )


def convert(source: Path, target: Path, *, tp: int, text: tuple[int, ...], vision: tuple[int, ...]) -> None:
    """Convert a checkpoint directory."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    modalities = modalities_of(config, text, vision)
    if config["num_key_value_heads"] % tp or config["vision_config"]["num_heads"] % tp:
        raise ValueError(f"the attention heads cannot be divided among {tp} tensor-parallel ranks")
    tensors = merge(load(source), config)
    first_stage, last_stage = modalities[0].ends
    if config["tie_word_embeddings"] and first_stage != last_stage:
        tensors[HEAD] = tensors[EMBEDDING]
    save(target, [partition(rank, modalities) for rank in split(tensors, tp)])


def stage_list(text: str) -> tuple[int, ...]:
    """Read `7,7,7,7`."""
    return tuple(int(layers) for layers in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Convert Qwen2-VL to Megatron, the plain way.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--text-stages", type=stage_list, required=True, metavar="N,N,...")
    parser.add_argument("--vision-stages", type=stage_list, required=True, metavar="N,N,...")
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    convert(
        arguments.source,
        arguments.target,
        tp=arguments.tp,
        text=arguments.text_stages,
        vision=arguments.vision_stages,
    )
    print(f"converted in {time.perf_counter() - begin:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
