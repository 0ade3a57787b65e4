"""Random small models of the Qwen families: names and shapes of their tensors, `config.json`, how they can be cut.

Names, shapes and fields come from `tests.published_towers` and `tests.published`, which know nothing of distconv; the
sizes are drawn here. What a definition leaves open on purpose (`loose`, `optional`) is written down from what it says,
since no independent check could know it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from random import Random
from typing import Any

from tests import published
from tests.differential.models import (
    DCP,
    MEGATRON,
    NOTHING,
    PUBLISHED_DCP,
    TORCH_DIST,
    Model,
    drawn_text,
    drawn_tower,
    merged,
    shapes_of,
)
from tests.published_towers import (
    Qwen3Vision,
    Text,
    omni_audio,
    omni_speech,
    qwen2_text,
    qwen2_vision,
    qwen3_text,
    qwen3_vision,
)


def with_head(text: Text) -> Text:
    """The same sizes, untied: a tied model's head has a name and a shape as well, whether it is stored or not."""
    return replace(text, tied=False)


QWEN2_MEMORY = (("visual.", "model.visual."), ("model.", "model.language_model."))


def qwen2_vl(random: Random, *, gated: bool) -> Model:
    tied = random.random() < 0.4
    text, (tower, heads) = drawn_text(random, tied=tied), drawn_tower(random)
    mlp = random.choice([12, 20]) if gated else 2 * tower.width
    build = published.qwen2_5_vl if gated else published.qwen2_vl
    config = (build("small", text, mlp) if gated else build("small", text)).configs[0]  # type: ignore[call-arg,arg-type]
    vision: dict[str, Any] = {"depth": tower.layers, "num_heads": heads, "patch_size": 2, "spatial_patch_size": 2}
    width = {"hidden_size": tower.width} if gated else {"embed_dim": tower.width, "mlp_ratio": 2}
    family = "qwen2_5vl" if gated else "qwen2vl"
    variants = [f"{family}_canonical"] if gated else [f"{family}_canonical", "videoalign", "videoalign_canonical"]
    variant = random.choice([None, None, *variants])
    shapes = shapes_of(chain(qwen2_vision(text.hidden, mlp=mlp, gated=gated, tower=tower), qwen2_text(with_head(text))))
    reward = variant is not None and variant.startswith("videoalign")
    if reward:
        shapes["rm_head.weight"] = (2, text.hidden)
    return Model(
        family=family,
        variant=variant,
        config=merged(config, {"vision_config": vision | width}),
        text="text_config",
        shapes=shapes,
        layers={"text": text.layers, "vision": tower.layers},
        tied=tied,
        left_out=frozenset({"lm_head.weight"} if reward else ()),
        loose=re.compile(r"^rm_head") if reward else NOTHING,
        optional=re.compile(r"^rm_head") if reward else NOTHING,
        memory=() if reward else QWEN2_MEMORY,
        encoder_tp=True,
    )


# The audio encoder's keys have no bias; in its fused parameter there are zeros for them.
OMNI_PADDED = re.compile(r"audio_encoder\..*\.linear_qkv\.bias")


def qwen2_5_omni(random: Random) -> Model:
    text, (tower, heads), (audio, audio_heads) = drawn_text(random), drawn_tower(random), drawn_tower(random)
    mlp, audio_mlp, bins = random.choice([12, 20]), random.choice([12, 20]), random.choice([3, 5])
    thinker = {
        "vision_config": {"depth": tower.layers, "hidden_size": tower.width, "intermediate_size": mlp}
        | {"num_heads": heads, "patch_size": 2, "spatial_patch_size": 2},
        "audio_config": {"d_model": audio.width, "encoder_attention_heads": audio_heads, "encoder_layers": audio.layers}
        | {"encoder_ffn_dim": audio_mlp, "num_mel_bins": bins},
    }
    prefix = "thinker."
    trained = shapes_of(
        chain(
            qwen2_vision(text.hidden, mlp=mlp, gated=True, fused=False, prefix=prefix, tower=tower),
            omni_audio(text.hidden, sizes=audio, mlp=audio_mlp, bins=bins),
            qwen2_text(text, prefix),
        )
    )
    config: Mapping[str, Any] = merged(published.qwen2_5_omni("small", text).configs[0], {"thinker_config": thinker})
    layers = {"text": text.layers, "vision": tower.layers, "audio": audio.layers}
    if random.random() < 0.5:
        bare = {name.removeprefix(prefix): shape for name, shape in trained.items()}
        memory = (*QWEN2_MEMORY[:1], ("audio_tower.", "model.audio_tower."), *QWEN2_MEMORY[1:])
        return Model(
            family="qwen2_5omni",
            config=config["thinker_config"],
            text="text_config",
            shapes=bare,
            layers=layers,
            memory=memory,
            padded=OMNI_PADDED,
            encoder_tp=True,
        )
    speech = {name: tuple(min(each, 6) for each in shape) for name, shape in shapes_of(omni_speech()).items()}
    return Model(
        family="qwen2_5omni",
        config=config,
        text="thinker_config.text_config",
        shapes=trained | speech,
        layers=layers,
        left_out=frozenset(speech),
        unnamed=(MEGATRON, TORCH_DIST, DCP, PUBLISHED_DCP),
        padded=OMNI_PADDED,
        loose=re.compile(r"^(talker|token2wav)\."),
        optional=re.compile(r"^(talker|token2wav)\."),
        encoder_tp=True,
    )


def qwen3_vl(random: Random, *, moe: bool) -> Model:
    tied = not moe and random.random() < 0.4
    text, (tower, heads) = drawn_text(random, tied=tied), drawn_tower(random)
    marks = tuple(sorted(random.sample(range(tower.layers), random.randint(1, min(2, tower.layers)))))
    vision = Qwen3Vision(tower.layers, tower.width, random.choice([12, 20]), marks, patch=2, positions=9)
    head_dim, experts, expert_mlp = random.choice([4, 6]), random.choice([2, 4]), random.choice([6, 10])
    dense = [layer for layer in range(text.layers) if moe and random.random() < 0.2]
    fields: dict[str, Any] = {"text_config": {"head_dim": head_dim}}
    if moe:
        fields["text_config"] |= {"mlp_only_layers": dense}
    fields["vision_config"] = {"num_heads": heads, "patch_size": 2, "num_position_embeddings": 9}
    config = published.qwen3_vl("small", text, vision, experts=experts if moe else None, expert_mlp=expert_mlp).configs[
        0
    ]
    language = qwen3_text(with_head(text), experts if moe else None, expert_mlp, head_dim=head_dim, dense=dense)
    return Model(
        family="qwen3vl_moe" if moe else "qwen3vl",
        config=merged(config, fields),
        text="text_config",
        shapes=shapes_of(chain(qwen3_vision(vision, text.hidden), language)),
        layers={"text": text.layers, "vision": tower.layers},
        tied=tied,
        first=len(marks),
        ep=(1, 2) if moe and len(dense) < text.layers else (1,),
    )
