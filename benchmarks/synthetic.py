"""Write a synthetic Qwen2-VL checkpoint: published names, structure and files, pseudo-random content.

    python benchmarks/synthetic.py OUT --preset 2b         the dimensions of Qwen2-VL-2B, 4.4 GB
    python benchmarks/synthetic.py OUT --size-mb 400       a smaller lookalike
    python benchmarks/synthetic.py OUT --size-mb 400 --layers 9 --vision-layers 6

This module owns the names and shapes of a Hugging Face Qwen2-VL checkpoint and the bytes of a synthetic one. It
streams: no tensor is ever held whole, so a checkpoint of any size is written in a few MiB of memory. It never imports
torch or distconv, so that what it writes is independent of the code that is measured or tested with it.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...]

BYTES_PER_ELEMENT = 2  # bfloat16
BLOCK_WORDS = 1 << 19  # 64-bit words generated at a time: 4 MiB

# Of each bfloat16, sign, mantissa and the three low exponent bits stay random; the five high ones are fixed.
# That makes every value finite, with a magnitude from 2**-7 up to 2.
RANDOM_BITS = np.uint64(0x83FF_83FF_83FF_83FF)
FIXED_BITS = np.uint64(0x3C00_3C00_3C00_3C00)


@dataclass(frozen=True, kw_only=True)
class Qwen2VLDimensions:
    """All that the names and shapes of a Qwen2-VL checkpoint depend on."""

    layers: int
    hidden: int
    heads: int
    kv_groups: int
    intermediate: int
    vocab: int
    tied: bool
    vision_layers: int
    vision_width: int
    vision_heads: int
    vision_mlp_ratio: int = 4
    channels: int = 3
    patch: int = 14
    temporal_patch: int = 2
    spatial_merge: int = 2

    def __post_init__(self) -> None:
        """Refuse dimensions that no such model can have."""
        if self.hidden % self.heads or self.heads % self.kv_groups:
            raise ValueError(f"hidden {self.hidden}, heads {self.heads}, kv_groups {self.kv_groups} do not divide")
        if self.vision_width % self.vision_heads:
            raise ValueError(f"vision_width {self.vision_width} is no multiple of vision_heads {self.vision_heads}")

    @property
    def head_width(self) -> int:
        """Width of one attention head of the language model."""
        return self.hidden // self.heads


PRESETS = {
    "2b": Qwen2VLDimensions(
        layers=28,
        hidden=1536,
        heads=12,
        kv_groups=2,
        intermediate=8960,
        vocab=151936,
        tied=True,
        vision_layers=32,
        vision_width=1280,
        vision_heads=16,
    ),
}
MAX_SHARD_BYTES = 4_000_000_000  # as published
MIN_SHARDS = 4
HEAD_STEP = 8  # head widths of a lookalike: keeps the width of the vision encoder a multiple of its heads
FEWEST_LAYERS = 4  # of each kind in a lookalike: four pipeline stages always have one each


def qwen2vl_tensors(dimensions: Qwen2VLDimensions) -> dict[str, Shape]:
    """Name and shape of every tensor, in hub spelling and in the order in which the hub's shards are filled."""
    return {
        **_vision_tensors(dimensions),
        "model.embed_tokens.weight": (dimensions.vocab, dimensions.hidden),
        **_text_layer_tensors(dimensions),
        "model.norm.weight": (dimensions.hidden,),
        **({} if dimensions.tied else {"lm_head.weight": (dimensions.vocab, dimensions.hidden)}),
    }


def _vision_tensors(dimensions: Qwen2VLDimensions) -> dict[str, Shape]:
    width = dimensions.vision_width
    inner = width * dimensions.vision_mlp_ratio
    merged = width * dimensions.spatial_merge**2
    patch = (dimensions.channels, dimensions.temporal_patch, dimensions.patch, dimensions.patch)
    tensors: dict[str, Shape] = {"visual.patch_embed.proj.weight": (width, *patch)}
    for layer in range(dimensions.vision_layers):
        block = f"visual.blocks.{layer}"
        tensors |= _norm(f"{block}.norm1", width)
        tensors |= _norm(f"{block}.norm2", width)
        tensors |= _linear(f"{block}.attn.qkv", 3 * width, width)
        tensors |= _linear(f"{block}.attn.proj", width, width)
        tensors |= _linear(f"{block}.mlp.fc1", inner, width)
        tensors |= _linear(f"{block}.mlp.fc2", width, inner)
    tensors |= _norm("visual.merger.ln_q", width)
    tensors |= _linear("visual.merger.mlp.0", merged, merged)
    tensors |= _linear("visual.merger.mlp.2", dimensions.hidden, merged)
    return tensors


def _text_layer_tensors(dimensions: Qwen2VLDimensions) -> dict[str, Shape]:
    hidden, intermediate = dimensions.hidden, dimensions.intermediate
    kv_rows = dimensions.head_width * dimensions.kv_groups
    tensors: dict[str, Shape] = {}
    for layer in range(dimensions.layers):
        block = f"model.layers.{layer}"
        tensors |= _linear(f"{block}.self_attn.q_proj", hidden, hidden)
        tensors |= _linear(f"{block}.self_attn.k_proj", kv_rows, hidden)
        tensors |= _linear(f"{block}.self_attn.v_proj", kv_rows, hidden)
        tensors[f"{block}.self_attn.o_proj.weight"] = (hidden, hidden)
        tensors[f"{block}.mlp.gate_proj.weight"] = (intermediate, hidden)
        tensors[f"{block}.mlp.up_proj.weight"] = (intermediate, hidden)
        tensors[f"{block}.mlp.down_proj.weight"] = (hidden, intermediate)
        tensors[f"{block}.input_layernorm.weight"] = (hidden,)
        tensors[f"{block}.post_attention_layernorm.weight"] = (hidden,)
    return tensors


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def tensor_bytes(shape: Shape) -> int:
    """Bytes of one tensor of the checkpoint."""
    return math.prod(shape) * BYTES_PER_ELEMENT


def checkpoint_bytes(dimensions: Qwen2VLDimensions) -> int:
    """Bytes of all tensors: `metadata.total_size` of the index."""
    return sum(map(tensor_bytes, qwen2vl_tensors(dimensions).values()))


def lookalike(size: int, *, tied: bool) -> Qwen2VLDimensions:
    """Dimensions of a model of about `size` bytes, with the proportions and head counts of the published 2B.

    Widths, vocabulary and depth shrink or grow alike; the depth, chosen last, makes up for what the widths were rounded
    by. The smallest lookalike has 5 MB.
    """
    published = replace(PRESETS["2b"], tied=tied)
    scale = (size / checkpoint_bytes(published)) ** (1 / 3)
    head_width = max(1, round(published.head_width * scale / HEAD_STEP)) * HEAD_STEP
    shallow = replace(published, layers=FEWEST_LAYERS, vision_layers=FEWEST_LAYERS)
    while head_width > HEAD_STEP and checkpoint_bytes(_widths(shallow, head_width)) > size:
        head_width -= HEAD_STEP
    widths = _widths(published, head_width)
    shell = checkpoint_bytes(replace(widths, layers=0, vision_layers=0))
    depth = (size - shell) / (checkpoint_bytes(widths) - shell)
    return replace(
        widths,
        layers=max(FEWEST_LAYERS, round(published.layers * depth)),
        vision_layers=max(FEWEST_LAYERS, round(published.vision_layers * depth)),
    )


def lookalike_of_depth(size: int, layers: int, vision_layers: int, *, tied: bool) -> Qwen2VLDimensions:
    """Dimensions of a model of these depths whose widths bring it nearest to `size` bytes."""
    published = replace(PRESETS["2b"], tied=tied, layers=layers, vision_layers=vision_layers)
    head_widths = range(HEAD_STEP, 2 * published.head_width, HEAD_STEP)
    candidates = (_widths(published, head_width) for head_width in head_widths)
    return min(candidates, key=lambda each: abs(checkpoint_bytes(each) - size))


def _widths(published: Qwen2VLDimensions, head_width: int) -> Qwen2VLDimensions:
    ratio = head_width / published.head_width
    return replace(
        published,
        hidden=round(published.hidden * ratio),
        intermediate=round(published.intermediate * ratio),
        vocab=round(published.vocab * ratio / 128) * 128,
        vision_width=round(published.vision_width * ratio),
    )


def hugging_face_config(dimensions: Qwen2VLDimensions) -> dict[str, Any]:
    """`config.json` as the hub has it: flat text fields, no `text_config`."""
    rotary_pairs = dimensions.head_width // 2
    spatial_pairs = rotary_pairs * 3 // 8
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": dimensions.hidden,
        "initializer_range": 0.02,
        "intermediate_size": dimensions.intermediate,
        "max_position_embeddings": 32768,
        "max_window_layers": dimensions.layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": dimensions.heads,
        "num_hidden_layers": dimensions.layers,
        "num_key_value_heads": dimensions.kv_groups,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": [rotary_pairs - 2 * spatial_pairs, spatial_pairs, spatial_pairs],
        },
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": dimensions.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": dimensions.vision_layers,
            "embed_dim": dimensions.vision_width,
            "hidden_size": dimensions.hidden,
            "in_chans": dimensions.channels,
            "mlp_ratio": dimensions.vision_mlp_ratio,
            "num_heads": dimensions.vision_heads,
            "patch_size": dimensions.patch,
            "spatial_merge_size": dimensions.spatial_merge,
            "spatial_patch_size": dimensions.patch,
            "temporal_patch_size": dimensions.temporal_patch,
        },
        "vocab_size": dimensions.vocab,
    }


def fill_shards(tensors: Mapping[str, Shape], shard_bytes: int) -> list[dict[str, Shape]]:
    """Divide the tensors, in their order, into shards of at most `shard_bytes` (a larger tensor gets its own)."""
    shards: list[dict[str, Shape]] = [{}]
    used = 0
    for name, shape in tensors.items():
        if shards[-1] and used + tensor_bytes(shape) > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += tensor_bytes(shape)
    return shards


def content(name: str, size: int) -> Iterator[memoryview]:
    """Yield the bytes of one tensor, in blocks; they depend on nothing but its name."""
    generator = np.random.SFC64(int.from_bytes(sha256(name.encode()).digest()[:16], "little"))
    for start in range(0, size, BLOCK_WORDS * 8):
        length = min(BLOCK_WORDS * 8, size - start)
        words = generator.random_raw(-(-length // 8))
        words &= RANDOM_BITS
        words |= FIXED_BITS
        yield words.data.cast("B")[:length]


def write_shard(path: Path, tensors: Mapping[str, Shape]) -> None:
    """Write one safetensors file, tensors by name as the safetensors library orders those of one dtype."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensor_bytes(tensors[name])
        header[name] = {"dtype": "BF16", "shape": list(tensors[name]), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name in sorted(tensors):
            for block in content(name, tensor_bytes(tensors[name])):
                file.write(block)


def write_checkpoint(directory: Path, dimensions: Qwen2VLDimensions) -> None:
    """Write the checkpoint directory: shards, index, configuration and the small files that come with a model."""
    directory.mkdir(parents=True, exist_ok=True)
    total = checkpoint_bytes(dimensions)
    shards = fill_shards(qwen2vl_tensors(dimensions), min(MAX_SHARD_BYTES, -(-total // MIN_SHARDS)))
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(directory / file_name, tensors)
        weight_map |= dict.fromkeys(tensors, file_name)
    config = hugging_face_config(dimensions)
    side_files = {
        "config.json": config,
        "generation_config.json": {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "transformers_version")
        },
        "model.safetensors.index.json": {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        },
        "tokenizer_config.json": {"model_max_length": 32768, "tokenizer_class": "Qwen2Tokenizer"},
    }
    for file_name, value in side_files.items():
        (directory / file_name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a synthetic Qwen2-VL checkpoint directory.")
    parser.add_argument("directory", type=Path, metavar="OUT")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size-mb", type=int, default=400, help="about this many megabytes of tensors (default 400)")
    size.add_argument("--preset", choices=sorted(PRESETS), help="published dimensions")
    parser.add_argument("--layers", type=int, help="so many text layers, whatever the size (with --vision-layers)")
    parser.add_argument("--vision-layers", type=int, help="so many vision layers")
    head = parser.add_mutually_exclusive_group()
    head.add_argument("--tied", action="store_true", default=True, help="no lm_head (default, as the 2B)")
    head.add_argument("--untied", action="store_false", dest="tied", help="an lm_head of its own")
    arguments = parser.parse_args(argv)

    if arguments.preset:
        dimensions = replace(PRESETS[arguments.preset], tied=arguments.tied)
    elif arguments.layers and arguments.vision_layers:
        size = arguments.size_mb * 10**6
        dimensions = lookalike_of_depth(size, arguments.layers, arguments.vision_layers, tied=arguments.tied)
    else:
        dimensions = lookalike(arguments.size_mb * 10**6, tied=arguments.tied)
    begin = time.perf_counter()
    write_checkpoint(arguments.directory, dimensions)
    seconds = time.perf_counter() - begin
    megabytes = checkpoint_bytes(dimensions) / 1e6
    print(f"{arguments.directory}: {megabytes:.0f} MB in {seconds:.1f} s, {dimensions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
