"""Random small language models: names and shapes of their tensors, `config.json`, how they can be cut.

Without layers that predict further tokens: what is published beside them are copies, which no element tells apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from random import Random

from tests.differential.models import NOTHING, Model, drawn_text, shapes_of
from tests.published_language_models import Decoder, Latent, Mixture, language_model, of

# What definitions let a checkpoint have, or not.
_OPTIONAL: Mapping[str, re.Pattern[str]] = {
    "deepseek_v3": re.compile(r"e_score_correction_bias"),
    "glm4_moe": re.compile(r"e_score_correction_bias|[qkv]_proj\.bias|[qk]_norm"),
    "gpt_oss": re.compile(r"[qkvo]_proj\.bias"),
}
_TIED = ("llama", "qwen2", "qwen3")


def _model(family: str, random: Random) -> Model:
    decoder = _decoder(family, random)
    return Model(
        family=family,
        config=of("small", family, decoder, parameters=None).configs[0],
        text="",
        # A tied model's head has a name and a shape as well, whether it is stored or not.
        shapes=shapes_of(language_model(replace(decoder, size=replace(decoder.size, tied=False)))),
        layers={"text": decoder.size.layers},
        tied=decoder.size.tied,
        nested=False,
        optional=_OPTIONAL.get(family, NOTHING),
        ep=(1, 2) if decoder.mixture is not None else (1,),
    )


def _decoder(family: str, random: Random) -> Decoder:
    text = drawn_text(random, tied=family in _TIED and random.random() < 0.4)
    mlp = random.choice([6, 10])
    experts = partial(Mixture, experts=random.choice([2, 4]), mlp=mlp)
    of_deepseek = partial(experts, shared=random.choice([1, 2]), dense=random.choice([0, 1]), bias_of_router=True)
    ranks = Latent(q_rank=random.choice([None, 6]), kv_rank=6, nope=4, rope=2, value=4)
    of_mixtral = {"router": "block_sparse_moe.gate", "module": "block_sparse_moe.experts", "parts": ("w1", "w3", "w2")}
    decoders: Mapping[str, Callable[[], Decoder]] = {
        "llama": lambda: Decoder(size=text),
        "mistral": lambda: Decoder(size=text),
        "qwen2": lambda: Decoder(size=text, biases=("qkv",)),
        "qwen3": lambda: Decoder(size=text, head_dim=6, norms_of_heads=True),
        "qwen3_moe": lambda: Decoder(size=text, head_dim=4, norms_of_heads=True, mixture=experts()),
        "mixtral": lambda: Decoder(size=text, mixture=Mixture(experts=2, mlp=text.mlp, **of_mixtral)),  # type: ignore[arg-type]
        "deepseek_v3": lambda: Decoder(size=text, latent=ranks, mixture=of_deepseek()),
        "glm4_moe": lambda: Decoder(
            size=text, head_dim=4, biases=("qkv",), norms_of_heads=random.random() < 0.5, mixture=of_deepseek()
        ),
        "gpt_oss": lambda: Decoder(
            size=text,
            head_dim=6,
            biases=("qkv", "o"),
            sinks=True,
            mixture=Mixture(experts=2, mlp=text.mlp, router="mlp.router"),
        ),
    }
    return decoders[family]()


_NAMES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe", "gpt_oss")
FAMILIES: Mapping[str, Callable[[Random], Model]] = {name: partial(_model, name) for name in _NAMES}
