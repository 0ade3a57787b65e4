"""The published sizes of all families: `config.json`, tensors, and the layouts that are documented for them.

Facts about other people's files, from the model cards and the examples of MindSpeed-MM. Nothing of it comes from the
definitions under `conf/model/` or from distconv, so that both can be held against it; it imports neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tests.published_towers import (
    EVERY,
    LANGUAGE_MODELS,
    LARGE_VISION,
    SMALL_VISION,
    VISION_6B,
    VISION_300M,
    DeepSeek,
    InternVision,
    Qwen3Vision,
    Tensor,
    Text,
    deepseek_text,
    glm_text,
    glm_vision,
    intern_vision,
    intern_vision_hf,
    omni_audio,
    omni_speech,
    qwen2_text,
    qwen2_vision,
    qwen3_text,
    qwen3_vision,
    siglip,
    text_at,
    whole,
)

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A documented layout. Stage lists: `[v][p]` is the number of layers on virtual stage v of pipeline rank p."""

    text: list[list[int]]
    vision: list[list[int]]
    audio: list[list[int]] | None = None
    tp: int = 1
    ep: int = 1
    encoder_tp: int | None = None
    placement: str = "sequential"
    select: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint: its `config.json` in the spellings that are about, and its tensors.

    `definition` is the one that it must be converted with; `predicts`: it has layers that predict further tokens,
    beside which training has the embedding; `parameters` their number as the hub's index gives it
    (`metadata.total_size`), where it is known.
    """

    name: str
    definition: str
    configs: tuple[Config, ...]
    tensors: Callable[[], Iterable[Tensor]]
    layouts: tuple[Layout, ...]
    tied: bool = False
    predicts: bool = False
    experts: int | None = None
    parameters: int | None = None


def qwen2_vl(name: str, size: Text, *layouts: Layout, parameters: int | None = None) -> Published:
    vision = {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": size.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    return Published(
        name=name,
        definition="qwen2vl",
        configs=flat_and_nested("qwen2_vl", size, vision),
        tensors=lambda: chain(qwen2_vision(size.hidden, mlp=5120, gated=False), qwen2_text(size)),
        layouts=layouts,
        tied=size.tied,
        parameters=parameters,
    )


def qwen2_5_vl(name: str, size: Text, vision_mlp: int, *layouts: Layout, parameters: int | None = None) -> Published:
    return Published(
        name=name,
        definition="qwen2_5vl",
        configs=flat_and_nested("qwen2_5_vl", size, qwen2_5_vision_fields(size.hidden, vision_mlp)),
        tensors=lambda: chain(qwen2_vision(size.hidden, mlp=vision_mlp, gated=True), qwen2_text(size)),
        layouts=layouts,
        tied=size.tied,
        parameters=parameters,
    )


def qwen2_5_vision_fields(hidden: int, mlp: int) -> dict[str, Any]:
    return {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": mlp,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }


def flat_and_nested(model_type: str, size: Text, vision: Config) -> tuple[Config, ...]:
    """As the hub has it, as transformers 4.57 saves it (without what is false), and as 5 does (the tie at the top)."""
    text = {key: value for key, value in size.fields().items() if value is not False}
    return (
        {"model_type": model_type, **size.fields(), "vision_config": vision},
        {"model_type": model_type, "text_config": text, "vision_config": vision},
        {
            "model_type": model_type,
            "text_config": {key: value for key, value in text.items() if key != "tie_word_embeddings"},
            "tie_word_embeddings": size.tied,
            "vision_config": vision,
        },
    )


def qwen2_5_omni(name: str, size: Text, *layouts: Layout) -> Published:
    audio = {
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "encoder_layers": 32,
        "num_mel_bins": 128,
        "output_dim": size.hidden,
    }
    thinker = {
        "model_type": "qwen2_5_omni_thinker",
        "text_config": size.fields(),
        "vision_config": qwen2_5_vision_fields(size.hidden, 3420),
        "audio_config": audio,
    }
    return Published(
        name=name,
        definition="qwen2_5omni",
        configs=({"model_type": "qwen2_5_omni", "thinker_config": thinker},),
        tensors=lambda: chain(
            qwen2_vision(size.hidden, mlp=3420, gated=True, fused=False, prefix="thinker."),
            omni_audio(size.hidden),
            qwen2_text(size, "thinker."),
            omni_speech(),
        ),
        layouts=layouts,
        tied=size.tied,
    )


def qwen3_vl(
    name: str,
    size: Text,
    vision: Qwen3Vision,
    *layouts: Layout,
    experts: int | None = None,
    expert_mlp: int = 0,
    parameters: int | None = None,
) -> Published:
    model_type = "qwen3_vl" if experts is None else "qwen3_vl_moe"
    text = {**size.fields(), "head_dim": 128, "model_type": f"{model_type}_text"}
    if experts is not None:
        text |= {"num_experts": experts, "moe_intermediate_size": expert_mlp, "mlp_only_layers": []}
    config = {
        "model_type": model_type,
        "tie_word_embeddings": size.tied,
        "text_config": text,
        "vision_config": {
            "depth": vision.layers,
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp,
            "num_heads": 16,
            "in_channels": 3,
            "out_hidden_size": size.hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": list(vision.deepstack),
        },
    }
    return Published(
        name=name,
        definition="qwen3vl" if experts is None else "qwen3vl_moe",
        configs=(config,),
        tensors=lambda: chain(qwen3_vision(vision, size.hidden), qwen3_text(size, experts, expert_mlp)),
        layouts=layouts,
        tied=size.tied,
        experts=experts,
        parameters=parameters,
    )


def intern_vl(
    name: str,
    architecture: str,
    size: Text,
    vision: InternVision,
    *layouts: Layout,
    parameters: int | None = None,
) -> Published:
    config = {
        "model_type": "internvl_chat",
        "llm_config": {"architectures": [architecture], **size.fields()},
        "vision_config": {
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp,
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "num_channels": 3,
            "patch_size": 14,
            "image_size": 448,
            "qkv_bias": not vision.large,
            "qk_normalization": vision.large,
        },
    }
    return Published(
        name=name,
        definition="internvl",
        configs=(config,),
        tensors=lambda: chain(intern_vision(vision, size.hidden), LANGUAGE_MODELS[architecture](size)),
        layouts=layouts,
        parameters=parameters,
    )


def intern_vl_hf(
    name: str, size: Text, vision: InternVision, *layouts: Layout, parameters: int | None = None
) -> Published:
    """As transformers saves InternVL, here with Qwen2."""
    config = {
        "model_type": "internvl",
        "text_config": {"model_type": "qwen2", **size.fields()},
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp,
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "num_channels": 3,
            "patch_size": [14, 14],
            "image_size": [448, 448],
            "attention_bias": not vision.large,
            "use_qk_norm": vision.large,
        },
    }
    return Published(
        name=name,
        definition="internvl_hf",
        configs=(config,),
        tensors=lambda: chain(intern_vision_hf(vision, size.hidden), LANGUAGE_MODELS["Qwen2ForCausalLM"](size)),
        layouts=layouts,
        parameters=parameters,
    )


def glm4_1v(name: str, size: Text, *layouts: Layout, parameters: int | None = None) -> Published:
    vision = {
        "depth": 24,
        "hidden_size": 1536,
        "intermediate_size": 13696,
        "num_heads": 12,
        "in_channels": 3,
        "image_size": 336,
        "out_hidden_size": 4096,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return Published(
        name=name,
        definition="glm4_1v",
        configs=flat_and_nested("glm4v", size, vision),
        tensors=lambda: chain(glm_vision(), glm_text(size)),
        layouts=layouts,
        parameters=parameters,
    )


def deepseek_vl2(
    name: str, size: DeepSeek, *layouts: Layout, omitted: tuple[str, ...] = (), mtp: int = 0, **fields: Any
) -> Published:
    """`omitted` are the fields that the published file leaves out; `fields` those that it has beside or differently."""
    language = {
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "intermediate_size": size.mlp,
        "vocab_size": size.vocabulary,
        "n_routed_experts": size.experts,
        "n_shared_experts": size.shared,
        "moe_intermediate_size": size.expert_mlp,
        "first_k_dense_replace": size.dense_layers,
        "q_lora_rank": size.q_rank,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "use_mla": size.latent,
        "topk_method": "noaux_tc" if size.correction else "greedy",
        **fields,
    }
    config = {
        "model_type": "deepseek_vl_v2",
        "language_config": {key: value for key, value in language.items() if key not in omitted},
        "vision_config": {"layers": 27, "width": 1152, "patch_size": 14, "model_name": "siglip_so400m_patch14_384"},
        "projector_config": {"n_embed": size.hidden},
        "tile_tag": "2D",
    }
    later = chain.from_iterable(
        whole(f"language.model.layers.{size.layers + number}.eh_proj", size.hidden, 2 * size.hidden)
        for number in range(mtp)
    )
    prediction = [replace(tensor, left_out=True) for tensor in text_at(EVERY, later)]
    return Published(
        name=name,
        definition="deepseekvl2",
        configs=(config,),
        tensors=lambda: chain(siglip(size.hidden), deepseek_text(size), prediction),
        layouts=layouts,
        experts=size.experts,
    )


# All of them, with the layouts that MindSpeed-MM documents ------------------------------------------------------------

QWEN3_VL_235B = Text(94, 4096, 64, 4, 12288, 151936)
DEEPSEEK_V3 = DeepSeek(
    layers=61,
    hidden=7168,
    heads=128,
    mlp=18432,
    experts=256,
    expert_mlp=2048,
    shared=1,
    dense_layers=3,
    vocabulary=129280,
    q_rank=1536,
    correction=True,
)
PUBLISHED = (
    qwen2_vl(
        "Qwen2-VL-2B",
        Text(28, 1536, 12, 2, 8960, 151936, tied=True),
        Layout(text=[[28]], vision=[[32]]),
        parameters=2_208_985_600,
    ),
    qwen2_vl(
        "Qwen2-VL-7B",
        Text(28, 3584, 28, 4, 18944, 152064),
        Layout(text=[[1, 10, 10, 7]], vision=[[32, 0, 0, 0]]),
        Layout(text=[[0, 0, 0, 1], [4, 4, 4, 4], [4, 3, 2, 2]], vision=[[10, 10, 10, 2], [0, 0, 0, 0], [0, 0, 0, 0]]),
        Layout(text=[[4, 24]], vision=[[32, 0]]),
        parameters=8_291_375_616,
    ),
    qwen2_vl(
        "Qwen2-VL-72B",
        Text(80, 8192, 64, 8, 29568, 152064),
        Layout(text=[[5, 11, 11, 11, 11, 11, 11, 9]], vision=[[32, 0, 0, 0, 0, 0, 0, 0]], tp=2),
    ),
    qwen2_5_vl(
        "Qwen2.5-VL-3B",
        Text(36, 2048, 16, 2, 11008, 151936, tied=True),
        3420,
        Layout(text=[[36]], vision=[[32]]),
        parameters=3_754_622_976,
    ),
    qwen2_5_vl(
        "Qwen2.5-VL-7B",
        Text(28, 3584, 28, 4, 18944, 152064),
        3420,
        Layout(text=[[12, 16]], vision=[[32, 0]]),
        Layout(text=[[1, 10, 10, 7]], vision=[[32, 0, 0, 0]]),
        Layout(text=[[1, 10, 10, 7]], vision=[[32, 0, 0, 0]], tp=2),
        Layout(text=[[28]], vision=[[32]]),
        parameters=8_292_166_656,
    ),
    qwen2_5_vl(
        "Qwen2.5-VL-32B",
        Text(64, 5120, 40, 8, 27648, 152064),
        3456,
        Layout(text=[[1, 9, 9, 9, 9, 9, 9, 9]], vision=[[32, 0, 0, 0, 0, 0, 0, 0]], tp=2),
        Layout(text=[[64]], vision=[[32]], select=("vision",)),
        Layout(text=[[32, 32]], vision=[[32, 0]]),
        *(
            Layout(
                text=[[0, 0, 0, 0, 0], [0, 16, 16, 16, 16], [0, 0, 0, 0, 0]],
                vision=[[3, 7, 7, 7, 7], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
                tp=tp,
                placement="u_shape",
            )
            for tp in (2, 4)
        ),
        parameters=33_452_718_336,
    ),
    qwen2_5_vl(
        "Qwen2.5-VL-72B",
        Text(80, 8192, 64, 8, 29568, 152064),
        3456,
        Layout(text=[[6, 11, 11, 11, 11, 11, 11, 8]], vision=[[32, 0, 0, 0, 0, 0, 0, 0]], tp=2),
        parameters=73_410_777_344,
    ),
    qwen2_5_omni(
        "Qwen2.5-Omni-7B",
        Text(28, 3584, 28, 4, 18944, 152064),
        Layout(text=[[11, 17]], vision=[[32, 0]], audio=[[32, 0]]),
        Layout(text=[[28]], vision=[[32]], audio=[[32]], tp=4, encoder_tp=1),
        Layout(text=[[0, 7, 12, 9]], vision=[[32, 0, 0, 0]], audio=[[0, 32, 0, 0]]),
    ),
    qwen2_5_omni(
        "Qwen2.5-Omni-3B",
        Text(36, 2048, 16, 2, 11008, 151936),
        Layout(text=[[36]], vision=[[32]], audio=[[32]], tp=2),
    ),
    qwen3_vl(
        "Qwen3-VL-2B",
        Text(28, 2048, 16, 8, 6144, 151936, tied=True),
        SMALL_VISION,
        Layout(text=[[28]], vision=[[24]]),
        parameters=2_127_532_032,
    ),
    qwen3_vl(
        "Qwen3-VL-4B",
        Text(36, 2560, 32, 8, 9728, 151936, tied=True),
        SMALL_VISION,
        Layout(text=[[16, 20]], vision=[[24, 0]], tp=2),
        parameters=4_437_815_808,
    ),
    qwen3_vl(
        "Qwen3-VL-8B",
        Text(36, 4096, 32, 8, 12288, 151936),
        LARGE_VISION,
        Layout(text=[[6, 10, 10, 10]], vision=[[27, 0, 0, 0]]),
        parameters=8_767_123_696,
    ),
    qwen3_vl(
        "Qwen3-VL-32B",
        Text(64, 5120, 64, 8, 25600, 151936),
        LARGE_VISION,
        Layout(text=[[28, 36]], vision=[[27, 0]], tp=8),
    ),
    qwen3_vl(
        "Qwen3-VL-30B-A3B",
        Text(48, 2048, 32, 4, 6144, 151936),
        LARGE_VISION,
        Layout(text=[[6, 14, 14, 14]], vision=[[27, 0, 0, 0]]),
        Layout(text=[[48]], vision=[[27]], ep=8),
        experts=128,
        expert_mlp=768,
        parameters=31_070_754_032,
    ),
    qwen3_vl(
        "Qwen3-VL-235B-A22B",
        QWEN3_VL_235B,
        LARGE_VISION,
        Layout(text=[[6, 12, 12, 12, 13, 13, 13, 13]], vision=[[27, 0, 0, 0, 0, 0, 0, 0]], tp=4, ep=8),
        experts=128,
        expert_mlp=1536,
    ),
    intern_vl(
        "InternVL2-2B",
        "InternLM2ForCausalLM",
        Text(24, 2048, 16, 8, 8192, 92553),
        VISION_300M,
        Layout(text=[[24]], vision=[[24]]),
        parameters=2_205_754_368,
    ),
    intern_vl(
        "InternVL2-8B",
        "InternLM2ForCausalLM",
        Text(32, 4096, 32, 8, 14336, 92553),
        VISION_300M,
        Layout(text=[[6, 9, 9, 8]], vision=[[24, 0, 0, 0]]),
        Layout(text=[[32]], vision=[[24]]),
        Layout(text=[[0, 0, 0, 1], [4, 4, 4, 4], [4, 4, 4, 3]], vision=[[6, 7, 7, 4], [0, 0, 0, 0], [0, 0, 0, 0]]),
        parameters=8_075_365_376,
    ),
    intern_vl(
        "InternVL2-26B",
        "InternLM2ForCausalLM",
        Text(48, 6144, 48, 8, 16384, 92553),
        VISION_6B,
        Layout(text=[[0, 2, 8, 8, 8, 8, 8, 6]], vision=[[38, 7, 0, 0, 0, 0, 0, 0]]),
        parameters=25_514_186_112,
    ),
    intern_vl(
        "InternVL2-Llama3-76B",
        "LlamaForCausalLM",
        Text(80, 8192, 64, 8, 28672, 128265),
        VISION_6B,
        Layout(
            text=[[0, 0, 0, 1, 5, 6, 7, 7, 7, 7, 7, 7, 7, 7, 6, 6]],
            vision=[[11, 12, 12, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
        ),
        Layout(
            text=[[0, 0, 0, 0, 4, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6]],
            vision=[[11, 11, 11, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
        ),
        parameters=76_262_358_400,
    ),
    intern_vl(
        "InternVL2.5-4B",
        "Qwen2ForCausalLM",
        Text(36, 2048, 16, 2, 11008, 151674),
        VISION_300M,
        Layout(text=[[36]], vision=[[24]]),
        parameters=3_712_637_952,
    ),
    intern_vl(
        "InternVL3-8B",
        "Qwen2ForCausalLM",
        Text(28, 3584, 28, 4, 18944, 151674),
        VISION_300M,
        Layout(text=[[6, 8, 8, 6]], vision=[[24, 0, 0, 0]]),
        Layout(text=[[28]], vision=[[24]]),
        # 151674 rows of the vocabulary over 4 ranks
        Layout(text=[[28]], vision=[[24]], tp=4),
        parameters=7_944_373_760,
    ),
    intern_vl(
        "InternVL2.5-78B, InternVL3-78B",
        "Qwen2ForCausalLM",
        Text(80, 8192, 64, 8, 29568, 151674),
        VISION_6B,
        Layout(
            text=[[0, 3, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 5, 5, 5, 2]],
            vision=[[45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
        ),
        # 25 heads of the vision encoder over 8 ranks
        Layout(text=[[40, 40]], vision=[[45, 0]], tp=8),
        parameters=78_408_318_336,
    ),
    intern_vl_hf(
        "InternVL3-8B-hf",
        Text(28, 3584, 28, 4, 18944, 151674),
        VISION_300M,
        Layout(text=[[6, 8, 8, 6]], vision=[[24, 0, 0, 0]]),
        Layout(text=[[28]], vision=[[24]], tp=4),
        parameters=7_944_373_760,
    ),
    intern_vl_hf(
        "InternVL3-78B-hf",
        Text(80, 8192, 64, 8, 29568, 151674),
        VISION_6B,
        Layout(text=[[40, 40]], vision=[[45, 0]], tp=8),
        parameters=78_408_318_336,
    ),
    glm4_1v(
        "GLM-4.1V-9B",
        Text(40, 4096, 32, 2, 13696, 151552),
        Layout(text=[[40]], vision=[[24]]),
        Layout(text=[[5, 12, 12, 11]], vision=[[24, 0, 0, 0]]),
        parameters=10_292_777_472,
    ),
    deepseek_vl2(
        "DeepSeek-VL2",
        DeepSeek(
            layers=30,
            hidden=2560,
            heads=32,
            mlp=12288,
            experts=72,
            expert_mlp=1536,
            shared=2,
            dense_layers=1,
            vocabulary=129280,
            correction=True,
        ),
        Layout(text=[[13, 17]], vision=[[27, 0]], ep=8),
        Layout(text=[[30]], vision=[[27]], ep=8),
        omitted=(
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "qk_rope_head_dim",
            "qk_nope_head_dim",
            "v_head_dim",
        ),
    ),
    deepseek_vl2(
        "DeepSeek-VL2-small",
        DeepSeek(
            layers=27,
            hidden=2048,
            heads=16,
            mlp=10944,
            experts=64,
            expert_mlp=1408,
            shared=2,
            dense_layers=1,
            vocabulary=102400,
        ),
        Layout(text=[[12, 15]], vision=[[27, 0]], tp=2, ep=8),
    ),
    deepseek_vl2(
        "DeepSeek-VL2-tiny",
        DeepSeek(
            layers=12,
            hidden=1280,
            heads=10,
            mlp=6848,
            experts=64,
            expert_mlp=896,
            shared=2,
            dense_layers=1,
            vocabulary=129280,
            latent=False,
        ),
        Layout(text=[[12]], vision=[[27]], tp=2, ep=4),
        kv_lora_rank=None,
        qk_rope_head_dim=0,
        qk_nope_head_dim=0,
        v_head_dim=0,
    ),
    deepseek_vl2(
        "DeepSeek-V3 with the vision encoder of DeepSeek-VL2",
        DEEPSEEK_V3,
        Layout(text=[[6, 8, 8, 8, 8, 8, 8, 7]], vision=[[27, 0, 0, 0, 0, 0, 0, 0]], ep=8),
        mtp=1,
        num_nextn_predict_layers=1,
    ),
)
