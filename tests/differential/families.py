"""Random small models of all families: those that are not Qwen's, and the list of all. As `qwen` has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import chain
from random import Random

from tests import published
from tests.differential import language
from tests.differential.models import DCP, MEGATRON, TORCH_DIST, Model, drawn_text, drawn_tower, merged, shapes_of
from tests.differential.qwen import qwen2_5_omni, qwen2_vl, qwen3_vl
from tests.published_towers import (
    LANGUAGE_MODELS,
    DeepSeek,
    GlmVision,
    InternVision,
    deepseek_text,
    glm_text,
    glm_vision,
    intern_vision,
    siglip,
)


def intern_vl(random: Random) -> Model:
    architecture = random.choice(sorted(LANGUAGE_MODELS))
    text, (tower, heads) = drawn_text(random, odd_vocabulary=random.random() < 0.3), drawn_tower(random)
    vision = InternVision(
        tower.layers, tower.width, heads, random.choice([12, 20]), large=random.random() < 0.5, patch=2, positions=10
    )
    tensors = chain(intern_vision(vision, text.hidden), LANGUAGE_MODELS[architecture](text))
    return Model(
        family="internvl",
        config=merged(
            published.intern_vl("small", architecture, text, vision).configs[0], {"vision_config": {"patch_size": 2}}
        ),
        text="llm_config",
        shapes=shapes_of(tensors),
        layers={"text": text.layers, "vision": tower.layers},
        nested=False,
        unnamed=(MEGATRON, TORCH_DIST, DCP),
        loose=re.compile(r"position_embedding|mlp1\.|self_attn\.|attention\.w|attn\.[qk]_norm"),
        optional=re.compile(r"bias$|[qk]_norm"),
    )


def glm4_1v(random: Random) -> Model:
    text, (tower, heads) = drawn_text(random), drawn_tower(random)
    vision = GlmVision(
        layers=tower.layers,
        width=tower.width,
        output=text.hidden,
        mlp=random.choice([12, 20]),
        patch=2,
        image=random.choice([4, 6]),
    )
    fields = {"depth": tower.layers, "hidden_size": tower.width, "intermediate_size": vision.mlp, "num_heads": heads}
    fields |= {"image_size": vision.image, "out_hidden_size": text.hidden, "patch_size": 2}
    return Model(
        family="glm4_1v",
        config=merged(published.glm4_1v("small", text).configs[0], {"vision_config": fields}),
        text="text_config",
        shapes=shapes_of(chain(glm_vision(vision), glm_text(text))),
        layers={"text": text.layers, "vision": tower.layers},
        loose=re.compile(r"position_embedding"),
        one_vision_stage=True,
    )


def deepseek_vl2(random: Random) -> Model:
    heads, (tower, _) = random.choice([2, 4]), drawn_tower(random)
    latent, mtp = random.random() < 0.7, int(random.random() < 0.3)
    head_dim = random.choice([4, 6])
    size = DeepSeek(
        layers=random.choice([2, 3, 4]),
        hidden=heads * head_dim,
        heads=heads,
        mlp=random.choice([12, 20]),
        experts=random.choice([2, 4]),
        expert_mlp=random.choice([6, 10]),
        shared=2,
        dense_layers=random.choice([0, 1]),
        vocabulary=random.choice([22, 30]),
        q_rank=6 if latent and random.random() < 0.5 else None,
        latent=latent,
        correction=random.random() < 0.5,
        kv_rank=5 if latent else 512,
        rope_dim=2,
        nope_dim=4,
        value_dim=3,
    )
    ranks = {"kv_lora_rank": size.kv_rank, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 3}
    if not latent:
        ranks = {"kv_lora_rank": None, "qk_rope_head_dim": 0, "qk_nope_head_dim": 0, "v_head_dim": 0}
    config = published.deepseek_vl2("small", size, mtp=mtp, num_nextn_predict_layers=mtp, **ranks).configs[0]
    later = {f"language.model.layers.{size.layers}.eh_proj.weight": (size.hidden, 2 * size.hidden)} if mtp else {}
    vision = siglip(size.hidden, tower=tower, mlp=random.choice([12, 20]), positions=9)
    return Model(
        family="deepseekvl2",
        config=merged(config, {"vision_config": {"layers": tower.layers, "width": tower.width, "patch_size": 2}}),
        text="language_config",
        shapes={**shapes_of(chain(vision, deepseek_text(size))), **later},
        layers={"text": size.layers, "vision": tower.layers},
        nested=False,
        left_out=frozenset(later),
        loose=re.compile(
            r"eh_proj|vision\.(patch_embed|pos_embed|attn_pool)|\.fc[12]\.|projector\.|shared_experts"
            + ("" if latent else r"|self_attn\.[qkvo]_proj")
        ),
        optional=re.compile(r"e_score_correction_bias|eh_proj"),
        one_vision_stage=True,
        ep=(1, 2),
    )


FAMILIES: Mapping[str, Callable[[Random], Model]] = {
    "qwen2vl": lambda random: qwen2_vl(random, gated=False),
    "qwen2_5vl": lambda random: qwen2_vl(random, gated=True),
    "qwen2_5omni": qwen2_5_omni,
    "qwen3vl": lambda random: qwen3_vl(random, moe=False),
    "qwen3vl_moe": lambda random: qwen3_vl(random, moe=True),
    "internvl": intern_vl,
    "glm4_1v": glm4_1v,
    "deepseekvl2": deepseek_vl2,
    **language.FAMILIES,
}
