"""Write tiny random checkpoints of the families that transformers has classes of, as `save_pretrained` writes them.

    python tiny_families.py DIRECTORY

makes for each of `MODELS` `DIRECTORY/NAME/hf`, in several shards of bfloat16; and where the parameters have other names
in memory than in that file, `DIRECTORY/NAME/hf_memory`, as trainers save a state dict.

A program of its own, so that tests need neither its imports nor its threads. Knows nothing of converted checkpoints.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

ROPE = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]}
TEXT = {
    "vocab_size": 136,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_scaling": ROPE,
}
TIED_TEXT = {**TEXT, "tie_word_embeddings": True}
# heads wider than hidden_size / num_attention_heads, as in the published 4B
QWEN3_TEXT = {**TEXT, "head_dim": 12}
VISION = {"depth": 4, "hidden_size": 40, "num_heads": 4, "intermediate_size": 44, "out_hidden_size": 48}
QWEN3_VISION = {**VISION, "num_position_embeddings": 25, "patch_size": 4, "deepstack_visual_indexes": [1, 3]}
GLM_VISION = {**VISION, "out_hidden_size": 48, "intermediate_size": 52, "image_size": 70}
INTERN_TEXT = {**{key: value for key, value in TEXT.items() if key != "rope_scaling"}, "model_type": "qwen2"}
INTERN_VISION = {
    "hidden_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "image_size": [28, 28],
    "patch_size": [14, 14],
}
AUDIO = {
    "num_mel_bins": 10,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 36,
    "d_model": 24,
    "output_dim": 48,
    "max_source_positions": 20,
}
# layer 1 is dense
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "mlp_only_layers": [1]}
THINKER = {"text_config": TEXT, "vision_config": VISION, "audio_config": AUDIO}
# what generates speech, as small as it can be: all of it is left out
TALKER = {
    "vocab_size": 30,
    "embedding_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rope_scaling": ROPE,
}
TOKEN2WAV = {
    "dit_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "emb_dim": 8,
        "ff_mult": 1,
        "num_embeds": 8,
        "mel_dim": 4,
        "enc_emb_dim": 4,
        "enc_dim": 4,
        "enc_channels": [4, 4, 4, 4, 12],
        "enc_attention_channels": 4,
        "enc_se_channels": 4,
    },
    "bigvgan_config": {
        "mel_dim": 4,
        "upsample_initial_channel": 16,
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_rates": [5],
        "upsample_kernel_sizes": [11],
    },
}
MODELS: dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig], dict[str, Any]]] = {
    "qwen2_5vl": (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        {"text_config": TEXT, "vision_config": VISION},
    ),
    "qwen2_5vl_tied": (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        {"text_config": TIED_TEXT, "vision_config": VISION},
    ),
    "qwen2_5omni": (
        Qwen2_5OmniForConditionalGeneration,
        Qwen2_5OmniConfig,
        {"thinker_config": THINKER, "talker_config": TALKER, "token2wav_config": TOKEN2WAV},
    ),
    "qwen2_5omni_thinker": (Qwen2_5OmniThinkerForConditionalGeneration, Qwen2_5OmniThinkerConfig, THINKER),
    "qwen2_5omni_thinker_tied": (
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2_5OmniThinkerConfig,
        {**THINKER, "text_config": TIED_TEXT},
    ),
    "qwen3vl": (
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        {"text_config": QWEN3_TEXT, "vision_config": QWEN3_VISION},
    ),
    # the class ties by what the text says; config.json then has tie_word_embeddings false at the top
    "qwen3vl_tied": (
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        {"text_config": {**QWEN3_TEXT, "tie_word_embeddings": True}, "vision_config": QWEN3_VISION},
    ),
    "qwen3vl_moe": (
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLMoeConfig,
        {"text_config": {**QWEN3_TEXT, **EXPERTS}, "vision_config": QWEN3_VISION},
    ),
    # An encoder as the one of 6B; that of 300M has LayerNorm and biases.
    "internvl_hf": (
        InternVLForConditionalGeneration,
        InternVLConfig,
        {"text_config": INTERN_TEXT, "vision_config": {**INTERN_VISION, "use_qk_norm": True, "norm_type": "rms_norm"}},
    ),
    "internvl_hf_small": (
        InternVLForConditionalGeneration,
        InternVLConfig,
        {"text_config": INTERN_TEXT, "vision_config": {**INTERN_VISION, "attention_bias": True}},
    ),
    "glm4_1v": (Glm4vForConditionalGeneration, Glm4vConfig, {"text_config": TEXT, "vision_config": GLM_VISION}),
}


def main(directory: Path) -> None:
    for name in MODELS:
        write(directory / name, random_model(name))


def write(directory: Path, model: PreTrainedModel) -> None:
    model.save_pretrained(directory / "hf", max_shard_size="100KB")
    if isinstance(model, Qwen2_5OmniForConditionalGeneration):
        # its voices, which the class wants to find, and does not save
        torch.save({"Chelsie": {"bos_token": 1, "ref_mel": torch.ones(2)}}, directory / "hf" / "spk_dict.pt")
    if model._checkpoint_conversion_mapping:
        model.config.save_pretrained(directory / "hf_memory")
        # tied weights are one in memory, and each of their names gets a copy
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        save_file(weights, directory / "hf_memory" / "model.safetensors", metadata={"format": "pt"})


def random_model(name: str) -> PreTrainedModel:
    """A model with no two parameters alike: the usual initialisation has zero biases and norms that are all one."""
    model_class, config_class, options = MODELS[name]
    # a copy, because configuration classes change what they are given
    model = model_class(config_class(**copy.deepcopy(options))).to(torch.bfloat16)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
