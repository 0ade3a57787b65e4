"""Configurations of tiny models of the families that transformers 5 has: those of golden cases, and of few fields.

Knows no program and no checkpoint.
"""

from __future__ import annotations

import json
from typing import Any

from tests.checkpoints import CASES

# each family, with the golden case that has its configuration
_OF_CASES = {
    "deepseek_v3": "fsdp2/tf5_deepseek_v3__forward",
    "ernie4_5_moe": "fsdp2/tf5_ernie4_5_moe__forward",
    "glm4v_moe": "fsdp2/tf5_glm4v_moe__back",
    "gpt_oss": "fsdp2/tf5_gpt_oss__back",
    "internvl": "fsdp2/tf5_internvl_moe__forward",
    "minimax_m2": "fsdp2/tf5_minimax_m2__back",
    "mistral3": "fsdp2/tf5_mistral3__back",
    "mixtral": "fsdp2/tf5_mixtral__forward",
    "qwen2_vl_tied": "cases/qwen2vl__tied_pp1",
    "qwen2_5_vl": "cases/qwen2_5vl__tp1_pp1",
    "qwen3": "fsdp2/qwen3__back",
    "qwen3_tied": "fsdp2/qwen3_tied__forward",
    "qwen3_5": "fsdp2/qwen3_5__back",
    "qwen3_5_tied": "fsdp2/qwen3_5_tied__back",
    "qwen3_5_moe": "fsdp2/tf5_qwen3_5_moe__back",
    "qwen3_moe": "fsdp2/tf5_qwen3_moe__back",
    "qwen3_omni_moe": "fsdp2/tf5_qwen3_omni_moe__back",
    "qwen3_vl_tied": "fsdp2/qwen3vl_tied__forward",
    "qwen3_vl_moe": "fsdp2/tf5_qwen3_vl_moe__back",
}
_TEXT: dict[str, Any] = {
    "vocab_size": 104,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_SHARED = {"moe_intermediate_size": 20, "shared_expert_intermediate_size": 28}
# layer 0 is dense
_GROUPED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 20,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 14, "kv_lora_rank": 10, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 6,
}  # fmt: skip
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 6, "linear_value_head_dim": 10, "head_dim": 16,
}  # fmt: skip
# each family, with its class and what it has beside the usual fields
_OF_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**_GROUPED, **_LATENT}),
    "dots1": ("Dots1ForCausalLM", {**_GROUPED, "head_dim": 16}),
    "flex_olmo": ("FlexOlmoForCausalLM", _EXPERTS),
    "glm4_moe": ("Glm4MoeForCausalLM", {**_GROUPED, "head_dim": 16}),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", {"num_experts": 4, "moe_topk": 2, "head_dim": 16}),
    "llama": ("LlamaForCausalLM", {}),
    "olmoe": ("OlmoeForCausalLM", _EXPERTS),
    "phimoe": (
        "PhimoeForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True},
    ),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**_EXPERTS, **_SHARED}),
    "qwen3_next": ("Qwen3NextForCausalLM", {**_EXPERTS, **_SHARED, **_LINEAR}),
}
_TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
_VISION = {"depth": 2, "hidden_size": 40, "num_heads": 4, "intermediate_size": 44, "out_hidden_size": 48}
_AUDIO = {
    "num_mel_bins": 10, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 36, "d_model": 24,
    "output_dim": 48, "max_source_positions": 20,
}  # fmt: skip
_THINKER = {"text_config": {**_TEXT, **_TURNED}, "vision_config": _VISION, "audio_config": _AUDIO}
# each family, with its class and all that it has
_OF_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4v": (
        "Glm4vForConditionalGeneration",
        {"text_config": {**_TEXT, **_TURNED}, "vision_config": {**_VISION, "image_size": 70}},
    ),
    "qwen2_5_omni": (
        "Qwen2_5OmniForConditionalGeneration",
        {"thinker_config": _THINKER, "enable_audio_output": False},
    ),
}
FAMILIES = (*_OF_CASES, *_OF_FIELDS, *_OF_PARTS)


def configuration(family: str) -> dict[str, Any]:
    """The content of `config.json` of a family."""
    if family in _OF_FIELDS:
        name, fields = _OF_FIELDS[family]
        return {**_TEXT, **fields, "model_type": family, "architectures": [name]}
    if family in _OF_PARTS:
        name, parts = _OF_PARTS[family]
        return {**parts, "model_type": family, "architectures": [name], "dtype": "bfloat16"}
    content: dict[str, Any] = json.loads((CASES.parent / f"{_OF_CASES[family]}.json").read_text())["hf_config"]
    _make_computing(content)
    return content


def _make_computing(part: dict[str, Any]) -> None:
    """Have the sections of a head add up: cases are of names and shapes, and no model computed with some of them."""
    # sections are of half of what is turned of a head
    if "partial_rotary_factor" in part and "mrope_section" in part:
        part["mrope_section"] = [2, 1, 1]
    for each in part.values():
        if isinstance(each, dict):
            _make_computing(each)
