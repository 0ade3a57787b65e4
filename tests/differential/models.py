"""What a random small model is, and how its sizes are drawn. Knows no family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.published_towers import Tensor, Text, Tower

HF, MEGATRON, TORCH_DIST, DCP, PUBLISHED_DCP = "hf", "megatron", "torch_dist", "dcp", "published dcp"
FORMATS = (HF, MEGATRON, TORCH_DIST, DCP, PUBLISHED_DCP)
Shapes = dict[str, tuple[int, ...]]
NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A small model: its tensors as published, its configuration as the hub has it, and what may be asked of it.

    `text` is the path of the language model's configuration, empty for all of it, which transformers writes `nested` or
    not. `variant` is a
    definition that must be named. `left_out` are tensors that training has no place for; of those that `loose` matches
    some dims are not checked, and those that `optional` matches may be absent. Parameters that `padded` matches have
    zeros of training's own. `memory` says how names begin in memory. From the formats `unnamed`, config.json alone does
    not tell the published names. `first` is the least number of text layers on the first stage.
    """

    family: str
    config: Mapping[str, Any]
    text: str
    shapes: Shapes
    layers: Mapping[str, int]
    tied: bool = False
    nested: bool = True
    variant: str | None = None
    left_out: frozenset[str] = frozenset()
    loose: re.Pattern[str] = NOTHING
    optional: re.Pattern[str] = NOTHING
    padded: re.Pattern[str] = NOTHING
    memory: tuple[tuple[str, str], ...] = ()
    unnamed: tuple[str, ...] = ()
    first: int = 0
    one_vision_stage: bool = False
    tp: tuple[int, ...] = (1, 2)
    ep: tuple[int, ...] = (1,)
    encoder_tp: bool = False

    @property
    def head(self) -> str:
        """Name of the language model's head, which a tied model does not store."""
        return next(name for name in self.shapes if HEAD.search(name))

    @property
    def embedding(self) -> str:
        """Name of the table of embeddings."""
        return next(name for name in self.shapes if EMBEDDING.search(name))

    def in_memory(self, name: str) -> str:
        """A published name as a model of transformers 5 has it in memory."""
        for published_prefix, prefix in self.memory:
            if name.startswith(published_prefix):
                return prefix + name.removeprefix(published_prefix)
        return name


HEAD = re.compile(r"(^|\.)(lm_head|output)\.weight$")
EMBEDDING = re.compile(r"(embed_tokens|tok_embeddings)\.weight$")


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some fields changed, at any depth."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, Mapping) else value
    return result


def drawn_text(random: Random, *, tied: bool = False, odd_vocabulary: bool = False) -> Text:
    """Sizes of a language model that two tensor parallel ranks can share; heads are 4 to 6 wide."""
    kv_heads = random.choice([2, 4])
    heads = kv_heads * random.choice([1, 2, 3])
    return Text(
        layers=random.choice([2, 3, 4]),
        hidden=heads * random.choice([2, 4]),
        heads=heads,
        kv_heads=kv_heads,
        mlp=random.choice([12, 20, 28]),
        vocabulary=random.choice([22, 30, 34]) + odd_vocabulary,
        tied=tied,
    )


def drawn_tower(random: Random) -> tuple[Tower, int]:
    """Sizes of an encoder, and the number of its heads."""
    heads = random.choice([2, 4])
    return Tower(random.choice([1, 2, 3]), heads * random.choice([2, 4]), 2), heads


def shapes_of(tensors: Iterable[Tensor]) -> Shapes:
    return {tensor.name: tensor.shape for tensor in tensors if tensor.stored}
