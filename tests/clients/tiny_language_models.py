"""Write tiny random language models, and what transformers computes from them, as `tiny_models.py` does of others.

python tiny_language_models.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers
from tiny_models import TEXT, randomise, write

EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "moe_intermediate_size": 40,
    "head_dim": 24,
}
# of 4 experts in 2 groups; the first layer is dense
SHARED_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 28,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "glm4_moe": ("Glm4Moe", {**SHARED_EXPERTS, "head_dim": 24, "attention_bias": True, "use_qk_norm": True}),
    "deepseek_v3": ("DeepseekV3", {**SHARED_EXPERTS, **LATENT}),
}


def main(directory: Path) -> None:
    for name, (family, options) in MODELS.items():
        config = getattr(transformers, f"{family}Config")(**{**TEXT, **options})
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        randomise(model)
        write(directory / name, model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
