"""Write tiny random checkpoints of Qwen2-VL and Qwen3-VL-MoE, and what transformers computes from them.

    python tiny_models.py DIRECTORY

makes for each of `MODELS` `DIRECTORY/NAME` with

    hf/           the checkpoint in float32, as `save_pretrained` writes it; those not tied in several shards
    hf_memory/    the same as trainers save a state dict, where transformers has other parameter names in memory
    model.json    its sizes, in the words in which a training program is configured
    inputs.pt     token ids; for Qwen2-VL also image patches
    expected.pt   the logits of the tokens and the features of the patches
    routing.pt    for each layer with experts what the router says, of Qwen3-VL-MoE its logits, [tokens, experts]

A program of its own, so that tests need neither its imports nor its threads. Knows nothing of converted checkpoints.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
QWEN2_TEXT = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
# heads wider than hidden_size / num_attention_heads, as in the published sizes
QWEN3_TEXT = {
    **TEXT,
    "head_dim": 24,
    "rope_scaling": {"rope_type": "default", "mrope_section": [4, 4, 4]},
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
}
QWEN2_VISION = {"depth": 4, "embed_dim": 32, "num_heads": 4, "hidden_size": 64}
# exists because the class has it
QWEN3_VISION = {
    "depth": 1,
    "hidden_size": 8,
    "num_heads": 1,
    "intermediate_size": 8,
    "out_hidden_size": 64,
    "num_position_embeddings": 4,
    "deepstack_visual_indexes": [0],
}
# within the vocabulary, which their defaults are not
SPECIAL_TOKENS = {
    "vision_start_token_id": 122,
    "vision_end_token_id": 123,
    "image_token_id": 124,
    "video_token_id": 125,
}
QWEN2 = {"vision_config": QWEN2_VISION, "bos_token_id": 120, "eos_token_id": 121, **SPECIAL_TOKENS}
QWEN3 = {"vision_config": QWEN3_VISION, **SPECIAL_TOKENS}
MODELS: dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig], dict[str, Any]]] = {
    "untied": (Qwen2VLForConditionalGeneration, Qwen2VLConfig, {"text_config": QWEN2_TEXT, **QWEN2}),
    "tied": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig,
        {"text_config": {**QWEN2_TEXT, "tie_word_embeddings": True}, "tie_word_embeddings": True, **QWEN2},
    ),
    "experts": (Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig, {"text_config": QWEN3_TEXT, **QWEN3}),
    "experts_but_in_one_layer": (
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLMoeConfig,
        {"text_config": {**QWEN3_TEXT, "mlp_only_layers": [1]}, **QWEN3},
    ),
    "experts_every_second_layer": (
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLMoeConfig,
        {"text_config": {**QWEN3_TEXT, "decoder_sparse_step": 2}, **QWEN3},
    ),
}
# an image, and a video of two frames: patches attend to those of their own frame only
GRID = [[1, 4, 4], [2, 4, 6]]


def main(directory: Path) -> None:
    for name in MODELS:
        write(directory / name, random_model(name))


def write(directory: Path, original: PreTrainedModel) -> None:
    directory.mkdir(parents=True)
    tied = original.config.tie_word_embeddings
    original.save_pretrained(directory / "hf", max_shard_size="1GB" if tied else "150KB")
    if original._checkpoint_conversion_mapping:
        save_state_dict(original, directory / "hf_memory")
    # from the files: what follows must be true of the checkpoint, not of the model that it was saved from
    model = type(original).from_pretrained(directory / "hf", attn_implementation="eager").eval()
    inputs = {"input_ids": random_tokens(model.config)}
    has_encoder = model.config.get_text_config() is not model.config
    decoder = {"text_decoder" if has_encoder else "language_model": text_sizes(model)}
    routing: dict[str, Tensor] = {}
    for name, router in routers(model).items():
        router.register_forward_hook(lambda _, __, logits, name=name: routing.update({name: logits}))
    with torch.inference_mode():
        expected = {"logits": model(input_ids=inputs["input_ids"]).logits}
        if isinstance(model, Qwen2VLForConditionalGeneration):
            decoder["image_encoder"] = vision_sizes(model.config.vision_config)
            inputs |= random_patches(model.config.vision_config)
            expected["image_features"] = model.visual(inputs["pixel_values"], inputs["grid_thw"])
    (directory / "model.json").write_text(json.dumps(decoder, indent=2))
    for name, tensors in {"inputs": inputs, "expected": expected, "routing": routing}.items():
        torch.save(tensors, directory / f"{name}.pt")


def save_state_dict(model: PreTrainedModel, directory: Path) -> None:
    model.config.save_pretrained(directory)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def random_model(name: str) -> PreTrainedModel:
    model_class, config_class, options = MODELS[name]
    # a copy, because configuration classes change what they are given
    model = model_class(config_class(**copy.deepcopy(options)))
    randomise(model)
    return model


def randomise(model: PreTrainedModel) -> None:
    """Make every parameter matter: the usual initialisation has zero biases and norms that are all one."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            if ".experts." in name and parameter.ndim == 3:
                values /= parameter.shape[1] ** 0.5  # [experts, inputs, outputs]
            elif parameter.ndim > 1:
                values /= parameter[0].numel() ** 0.5
            else:
                values = 0.3 * values + (0.0 if name.endswith("bias") else 1.0)
            parameter.copy_(values)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                # positive: transformers masks what it must not choose with zero
                buffer.copy_(0.2 * torch.rand(buffer.shape, generator=random))


def random_tokens(config: PretrainedConfig) -> Tensor:
    """Every token once, so that every row of the embedding matters; without images, special tokens are like others."""
    return torch.randperm(config.get_text_config().vocab_size, generator=torch.Generator().manual_seed(1)).view(4, -1)


def random_patches(vision: PretrainedConfig) -> dict[str, Tensor]:
    patches = sum(frames * height * width for frames, height, width in GRID)
    patch_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(patches, patch_size, generator=torch.Generator().manual_seed(2)),
        "grid_thw": torch.tensor(GRID),
    }


def routers(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name.endswith("mlp.gate")}


def text_sizes(model: PreTrainedModel) -> dict[str, Any]:
    text = model.config.get_text_config()
    kinds = {name.split("self_attn.")[-1] for name, _ in model.named_parameters()}
    return {
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "ffn_hidden_size": text.intermediate_size,
        "num_attention_heads": text.num_attention_heads,
        "num_query_groups": text.num_key_value_heads,
        "kv_channels": getattr(text, "head_dim", text.hidden_size // text.num_attention_heads),
        "add_qkv_bias": "q_proj.bias" in kinds,
        "qk_layernorm": bool(kinds & {"q_norm.weight", "kv_a_layernorm.weight"}),
        "vocab_size": text.vocab_size,
        "rotary_base": text.rope_theta,
        "rotary_percent": getattr(text, "partial_rotary_factor", 1.0),
        "layernorm_epsilon": text.rms_norm_eps,
        "tied": text.tie_word_embeddings,
        "latent": latent_sizes(text) if hasattr(text, "kv_lora_rank") else {},
        "experts": expert_sizes(text, routers(model)) if routers(model) else {},
    }


def latent_sizes(text: PretrainedConfig) -> dict[str, Any]:
    return {
        "q_lora_rank": text.q_lora_rank,
        "kv_lora_rank": text.kv_lora_rank,
        "qk_head_dim": text.qk_nope_head_dim,
        "qk_pos_emb_head_dim": text.qk_rope_head_dim,
        "v_head_dim": text.v_head_dim,
    }


def expert_sizes(text: PretrainedConfig, routers: Collection[str]) -> dict[str, Any]:
    routed = {int(name.split(".layers.")[1].split(".")[0]) for name in routers}
    sizes = {
        "moe_ffn_hidden_size": text.moe_intermediate_size,
        "moe_router_topk": text.num_experts_per_tok,
        "moe_layer_freq": [int(layer in routed) for layer in range(text.num_hidden_layers)],
    }
    if not hasattr(text, "n_routed_experts"):
        return {**sizes, "num_moe_experts": text.num_experts, "moe_router_score_function": "softmax"}
    return {
        **sizes,
        "num_moe_experts": text.n_routed_experts,
        "moe_shared_expert_intermediate_size": text.n_shared_experts * text.moe_intermediate_size,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": text.routed_scaling_factor,
        "moe_router_num_groups": text.n_group,
        "moe_router_group_topk": text.topk_group,
    }


def vision_sizes(vision: PretrainedConfig) -> dict[str, int]:
    return {
        "num_layers": vision.depth,
        "hidden_size": vision.embed_dim,
        "ffn_hidden_size": int(vision.embed_dim * vision.mlp_ratio),
        "num_attention_heads": vision.num_heads,
        "in_channels": vision.in_channels,
        "temporal_patch_size": vision.temporal_patch_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "output_size": vision.hidden_size,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
