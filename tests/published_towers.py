"""Names and shapes of the tensors in published checkpoints, by tower, and where training has them.

Facts about other people's files, written down from the mapping tables. Nothing of it comes from the definitions under
`conf/model/` or from distconv, so that both can be held against it; it imports neither. Sizes are `published`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import prod
from typing import Any

Shape = tuple[int, ...]
FIRST, LAST, EVERY = "first", "last", "every"


@dataclass(frozen=True)
class Units:
    """Tensor parallel ranks share so many units, as evenly as they come out, the first ranks one more."""

    count: int


# How tensor parallel ranks share a tensor: each has the whole, or an equal part, or whole units.
WHOLE, EQUAL = "whole", "equal"
Cut = Units | str
Piece = tuple[str, Shape, Cut]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a published checkpoint, and where training has it: `place` is first, last, every, or a layer.

    `expert` is the number of the expert that it belongs to; `packed` the number of experts that it holds. What is
    `left_out` is not trained. Of a tensor that is not `stored` training has zeros.
    """

    name: str
    shape: Shape
    modality: str
    place: str | int
    cut: Cut
    expert: int | None = None
    packed: int | None = None
    left_out: bool = False
    stored: bool = True

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def is_in_layer(self) -> bool:
        return isinstance(self.place, int)


@dataclass(frozen=True)
class Text:
    """Sizes of a language model, in the order of the tables."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool = False

    def fields(self) -> dict[str, Any]:
        """As `config.json` has them."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }


def column(name: str, rows: int, columns: int, *, bias: bool = True) -> Iterator[Piece]:
    """A column-parallel linear: ranks share its rows, and the elements of its bias."""
    yield f"{name}.weight", (rows, columns), EQUAL
    if bias:
        yield f"{name}.bias", (rows,), EQUAL


def row(name: str, rows: int, columns: int, *, bias: bool = True) -> Iterator[Piece]:
    """A row-parallel linear: ranks share its columns; the bias is added once, and every rank has it."""
    yield f"{name}.weight", (rows, columns), EQUAL
    if bias:
        yield f"{name}.bias", (rows,), WHOLE


def whole(name: str, *shape: int, bias: bool = False) -> Iterator[Piece]:
    """A weight that every rank has."""
    yield f"{name}.weight", shape, WHOLE
    if bias:
        yield f"{name}.bias", shape[:1], WHOLE


def at(modality: str, place: str | int, *pieces: Iterable[Piece]) -> Iterator[Tensor]:
    for name, shape, cut in chain(*pieces):
        yield Tensor(name=name, shape=shape, modality=modality, place=place, cut=cut)


text_at, vision_at, audio_at = partial(at, "text"), partial(at, "vision"), partial(at, "audio")


# Qwen2-VL, Qwen2.5-VL, Qwen2.5-Omni -----------------------------------------------------------------------------------


def qwen2_text(size: Text, prefix: str = "") -> Iterator[Tensor]:
    width = size.hidden // size.heads * size.kv_heads
    yield from text_at(FIRST, column(f"{prefix}model.embed_tokens", size.vocabulary, size.hidden, bias=False))
    for layer in range(size.layers):
        here = f"{prefix}model.layers.{layer}"
        yield from text_at(
            layer,
            column(f"{here}.self_attn.q_proj", size.hidden, size.hidden),
            column(f"{here}.self_attn.k_proj", width, size.hidden),
            column(f"{here}.self_attn.v_proj", width, size.hidden),
            row(f"{here}.self_attn.o_proj", size.hidden, size.hidden, bias=False),
            gated_mlp(f"{here}.mlp", size.hidden, size.mlp),
            whole(f"{here}.input_layernorm", size.hidden),
            whole(f"{here}.post_attention_layernorm", size.hidden),
        )
    yield from text_at(LAST, whole(f"{prefix}model.norm", size.hidden))
    if not size.tied:
        yield from text_at(LAST, column(f"{prefix}lm_head", size.vocabulary, size.hidden, bias=False))


def gated_mlp(name: str, hidden: int, mlp: int, *, bias: bool = False) -> Iterator[Piece]:
    yield from column(f"{name}.gate_proj", mlp, hidden, bias=bias)
    yield from column(f"{name}.up_proj", mlp, hidden, bias=bias)
    yield from row(f"{name}.down_proj", hidden, mlp, bias=bias)


@dataclass(frozen=True)
class Tower:
    """Sizes of an encoder; the defaults are those of all published Qwen2-VL, Qwen2.5-VL and Qwen2.5-Omni."""

    layers: int = 32
    width: int = 1280
    patch: int = 14


QWEN2_TOWER = Tower()


def qwen2_vision(
    hidden: int, *, mlp: int, gated: bool, fused: bool = True, prefix: str = "", tower: Tower = QWEN2_TOWER
) -> Iterator[Tensor]:
    """Qwen2-VL has a plain MLP and norms with bias."""
    width, patch, merged = tower.width, tower.patch, 4 * tower.width
    yield from vision_at(FIRST, whole(f"{prefix}visual.patch_embed.proj", width, 3, 2, patch, patch))
    for layer in range(tower.layers):
        here = f"{prefix}visual.blocks.{layer}"
        yield from vision_at(
            layer,
            whole(f"{here}.norm1", width, bias=not gated),
            whole(f"{here}.norm2", width, bias=not gated),
            *(
                [column(f"{here}.attn.qkv", 3 * width, width)]
                if fused
                else [column(f"{here}.attn.{letter}", width, width) for letter in "qkv"]
            ),
            row(f"{here}.attn.proj", width, width),
            gated_mlp(f"{here}.mlp", width, mlp, bias=True)
            if gated
            else chain(column(f"{here}.mlp.fc1", mlp, width), row(f"{here}.mlp.fc2", width, mlp)),
        )
    yield from vision_at(
        LAST,
        whole(f"{prefix}visual.merger.ln_q", width, bias=not gated),
        column(f"{prefix}visual.merger.mlp.0", merged, merged),
        row(f"{prefix}visual.merger.mlp.2", hidden, merged),
    )


def omni_audio(output: int, *, sizes: Tower = QWEN2_TOWER, mlp: int = 5120, bins: int = 128) -> Iterator[Tensor]:
    width, tower = sizes.width, "thinker.audio_tower"
    yield from audio_at(
        FIRST,
        whole(f"{tower}.conv1", width, bins, 3, bias=True),
        whole(f"{tower}.conv2", width, width, 3, bias=True),
        whole(f"{tower}.audio_bos_eos_token", 2, output),
    )
    for layer in range(sizes.layers):
        here = f"{tower}.layers.{layer}"
        yield from audio_at(
            layer,
            column(f"{here}.self_attn.q_proj", width, width),
            column(f"{here}.self_attn.k_proj", width, width, bias=False),
            column(f"{here}.self_attn.v_proj", width, width),
            row(f"{here}.self_attn.out_proj", width, width),
            whole(f"{here}.self_attn_layer_norm", width, bias=True),
            column(f"{here}.fc1", mlp, width),
            row(f"{here}.fc2", width, mlp),
            whole(f"{here}.final_layer_norm", width, bias=True),
        )
        for missing in audio_at(layer, [(f"{here}.self_attn.k_proj.bias", (width,), EQUAL)]):
            yield replace(missing, stored=False)
    yield from audio_at(LAST, whole(f"{tower}.ln_post", width, bias=True))
    yield from audio_at(LAST, whole(f"{tower}.proj", output, width, bias=True))


def omni_speech() -> Iterator[Tensor]:
    """A few of the tensors that generate speech."""
    pieces = chain(
        whole("talker.codec_head", 8448, 896),
        whole("talker.model.layers.0.self_attn.q_proj", 1536, 896, bias=True),
        whole("token2wav.code2wav_bigvgan_model.conv_pre", 1536, 80, 5, bias=True),
    )
    for tensor in at("speech", EVERY, pieces):
        yield replace(tensor, left_out=True)


# Qwen3-VL -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Qwen3Vision:
    """Sizes of the vision encoder of Qwen3-VL."""

    layers: int
    width: int
    mlp: int
    deepstack: tuple[int, ...]
    patch: int = 16
    positions: int = 2304


SMALL_VISION = Qwen3Vision(24, 1024, 4096, (5, 11, 17))
LARGE_VISION = Qwen3Vision(27, 1152, 4304, (8, 16, 24))


def qwen3_text(
    size: Text, experts: int | None, expert_mlp: int, *, head_dim: int = 128, dense: Collection[int] = ()
) -> Iterator[Tensor]:
    """`dense` are the layers without experts."""
    query, key = head_dim * size.heads, head_dim * size.kv_heads
    text = "model.language_model"
    yield from text_at(FIRST, column(f"{text}.embed_tokens", size.vocabulary, size.hidden, bias=False))
    for layer in range(size.layers):
        here = f"{text}.layers.{layer}"
        yield from text_at(
            layer,
            column(f"{here}.self_attn.q_proj", query, size.hidden, bias=False),
            column(f"{here}.self_attn.k_proj", key, size.hidden, bias=False),
            column(f"{here}.self_attn.v_proj", key, size.hidden, bias=False),
            row(f"{here}.self_attn.o_proj", size.hidden, query, bias=False),
            whole(f"{here}.self_attn.q_norm", head_dim),
            whole(f"{here}.self_attn.k_norm", head_dim),
            whole(f"{here}.input_layernorm", size.hidden),
            whole(f"{here}.post_attention_layernorm", size.hidden),
        )
        if experts is None or layer in dense:
            yield from text_at(layer, gated_mlp(f"{here}.mlp", size.hidden, size.mlp))
            continue
        yield from text_at(layer, whole(f"{here}.mlp.gate", experts, size.hidden))
        packed = [
            (f"{here}.mlp.experts.gate_up_proj", (experts, size.hidden, 2 * expert_mlp), EQUAL),
            (f"{here}.mlp.experts.down_proj", (experts, expert_mlp, size.hidden), EQUAL),
        ]
        for tensor in text_at(layer, packed):
            yield replace(tensor, packed=experts)
    yield from text_at(LAST, whole(f"{text}.norm", size.hidden))
    if not size.tied:
        yield from text_at(LAST, column("lm_head", size.vocabulary, size.hidden, bias=False))


def qwen3_vision(vision: Qwen3Vision, hidden: int) -> Iterator[Tensor]:
    width, merged = vision.width, 4 * vision.width
    yield from vision_at(FIRST, whole("model.visual.patch_embed.proj", width, 3, 2, *[vision.patch] * 2, bias=True))
    yield from vision_at(FIRST, whole("model.visual.pos_embed", vision.positions, width))
    for layer in range(vision.layers):
        here = f"model.visual.blocks.{layer}"
        yield from vision_at(
            layer,
            whole(f"{here}.norm1", width, bias=True),
            whole(f"{here}.norm2", width, bias=True),
            column(f"{here}.attn.qkv", 3 * width, width),
            row(f"{here}.attn.proj", width, width),
            column(f"{here}.mlp.linear_fc1", vision.mlp, width),
            row(f"{here}.mlp.linear_fc2", width, vision.mlp),
        )
    mergers: list[tuple[str, str | int, int]] = [("model.visual.merger", LAST, width)]
    mergers += [
        (f"model.visual.deepstack_merger_list.{number}", layer, merged) for number, layer in enumerate(vision.deepstack)
    ]
    for here, place, normed in mergers:
        yield from vision_at(
            place,
            whole(f"{here}.norm", normed, bias=True),
            column(f"{here}.linear_fc1", merged, merged),
            row(f"{here}.linear_fc2", hidden, merged),
        )


# InternVL -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InternVision:
    """Sizes of a vision encoder. The small one has LayerNorm and a bias of qkv; the large one norms q and k."""

    layers: int
    width: int
    heads: int
    mlp: int
    large: bool
    patch: int = 14
    positions: int = 1025


VISION_300M = InternVision(24, 1024, 16, 4096, large=False)
VISION_6B = InternVision(45, 3200, 25, 12800, large=True)


def intern_vision(vision: InternVision, hidden: int) -> Iterator[Tensor]:
    width, heads = vision.width, Units(vision.heads)
    embeddings = "vision_model.embeddings"
    yield from vision_at(
        FIRST,
        [(f"{embeddings}.class_embedding", (1, 1, width), WHOLE)],
        [(f"{embeddings}.position_embedding", (1, vision.positions, width), WHOLE)],
        whole(f"{embeddings}.patch_embedding", width, 3, *[vision.patch] * 2, bias=True),
    )
    for layer in range(vision.layers):
        here = f"vision_model.encoder.layers.{layer}"
        only_large = [whole(f"{here}.attn.{letter}_norm", width) for letter in "qk"]
        only_small: list[Piece] = [(f"{here}.attn.qkv.bias", (3 * width,), heads)]
        yield from vision_at(
            layer,
            [(f"{here}.attn.qkv.weight", (3 * width, width), heads)],
            [(f"{here}.attn.proj.weight", (width, width), heads)],
            [(f"{here}.attn.proj.bias", (width,), WHOLE)],
            *(only_large if vision.large else [only_small]),
            whole(f"{here}.norm1", width, bias=not vision.large),
            whole(f"{here}.norm2", width, bias=not vision.large),
            [(f"{here}.ls{number}", (width,), WHOLE) for number in (1, 2)],
            column(f"{here}.mlp.fc1", vision.mlp, width),
            row(f"{here}.mlp.fc2", width, vision.mlp),
        )
    yield from vision_at(
        LAST,
        whole("mlp1.0", 4 * width, bias=True),
        whole("mlp1.1", hidden, 4 * width, bias=True),
        whole("mlp1.3", hidden, hidden, bias=True),
    )


def intern_vision_hf(vision: InternVision, hidden: int) -> Iterator[Tensor]:
    """The same encoder and projector as transformers saves them."""
    width, heads = vision.width, Units(vision.heads)
    embeddings = "vision_tower.embeddings"
    yield from vision_at(
        FIRST,
        [(f"{embeddings}.cls_token", (1, 1, width), WHOLE)],
        [(f"{embeddings}.position_embeddings", (1, vision.positions, width), WHOLE)],
        whole(f"{embeddings}.patch_embeddings.projection", width, 3, *[vision.patch] * 2, bias=True),
    )
    for layer in range(vision.layers):
        here = f"vision_tower.encoder.layer.{layer}"
        attention = f"{here}.attention"
        only_large = [whole(f"{attention}.{letter}_norm", width) for letter in "qk"]
        only_small: list[list[Piece]] = [[(f"{attention}.{letter}_proj.bias", (width,), heads)] for letter in "qkv"]
        yield from vision_at(
            layer,
            [(f"{attention}.{letter}_proj.weight", (width, width), heads) for letter in "qkv"],
            [(f"{attention}.projection_layer.weight", (width, width), heads)],
            [(f"{attention}.projection_layer.bias", (width,), WHOLE)],
            *(only_large if vision.large else only_small),
            whole(f"{here}.layernorm_before", width, bias=not vision.large),
            whole(f"{here}.layernorm_after", width, bias=not vision.large),
            [(f"{here}.lambda_{number}", (width,), WHOLE) for number in (1, 2)],
            column(f"{here}.mlp.fc1", vision.mlp, width),
            row(f"{here}.mlp.fc2", width, vision.mlp),
        )
    yield from vision_at(
        LAST,
        whole("multi_modal_projector.layer_norm", 4 * width, bias=True),
        whole("multi_modal_projector.linear_1", hidden, 4 * width, bias=True),
        whole("multi_modal_projector.linear_2", hidden, hidden, bias=True),
    )


def intern_text(size: Text, *, bias: bool, norms: bool = False) -> Iterator[Tensor]:
    """Llama, with a bias of q, k and v Qwen2, with norms of q and k Qwen3; ranks share the vocabulary unevenly."""
    width = size.hidden // size.heads * size.kv_heads
    text, rows = "language_model", Units(size.vocabulary)
    yield from text_at(FIRST, [(f"{text}.model.embed_tokens.weight", (size.vocabulary, size.hidden), rows)])
    for layer in range(size.layers):
        here = f"{text}.model.layers.{layer}"
        yield from text_at(
            layer,
            column(f"{here}.self_attn.q_proj", size.hidden, size.hidden, bias=bias),
            column(f"{here}.self_attn.k_proj", width, size.hidden, bias=bias),
            column(f"{here}.self_attn.v_proj", width, size.hidden, bias=bias),
            row(f"{here}.self_attn.o_proj", size.hidden, size.hidden, bias=False),
            gated_mlp(f"{here}.mlp", size.hidden, size.mlp),
            *(whole(f"{here}.self_attn.{letter}_norm", size.hidden // size.heads) for letter in "qk" if norms),
            whole(f"{here}.input_layernorm", size.hidden),
            whole(f"{here}.post_attention_layernorm", size.hidden),
        )
    yield from text_at(LAST, whole(f"{text}.model.norm", size.hidden))
    yield from text_at(LAST, [(f"{text}.lm_head.weight", (size.vocabulary, size.hidden), rows)])


def internlm2_text(size: Text) -> Iterator[Tensor]:
    fused = size.hidden // size.heads * (size.heads + 2 * size.kv_heads)
    text, rows = "language_model", Units(size.vocabulary)
    yield from text_at(FIRST, [(f"{text}.model.tok_embeddings.weight", (size.vocabulary, size.hidden), rows)])
    for layer in range(size.layers):
        here = f"{text}.model.layers.{layer}"
        yield from text_at(
            layer,
            column(f"{here}.attention.wqkv", fused, size.hidden, bias=False),
            row(f"{here}.attention.wo", size.hidden, size.hidden, bias=False),
            column(f"{here}.feed_forward.w1", size.mlp, size.hidden, bias=False),
            column(f"{here}.feed_forward.w3", size.mlp, size.hidden, bias=False),
            row(f"{here}.feed_forward.w2", size.hidden, size.mlp, bias=False),
            whole(f"{here}.attention_norm", size.hidden),
            whole(f"{here}.ffn_norm", size.hidden),
        )
    yield from text_at(LAST, whole(f"{text}.model.norm", size.hidden))
    yield from text_at(LAST, [(f"{text}.output.weight", (size.vocabulary, size.hidden), rows)])


LANGUAGE_MODELS: Mapping[str, Callable[[Text], Iterator[Tensor]]] = {
    "InternLM2ForCausalLM": internlm2_text,
    "LlamaForCausalLM": partial(intern_text, bias=False),
    "Qwen2ForCausalLM": partial(intern_text, bias=True),
    "Qwen3ForCausalLM": partial(intern_text, bias=False, norms=True),
}


# GLM-4.1V -------------------------------------------------------------------------------------------------------------


def glm_text(size: Text) -> Iterator[Tensor]:
    width = size.hidden // size.heads * size.kv_heads
    text = "model.language_model"
    norms = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    yield from text_at(FIRST, column(f"{text}.embed_tokens", size.vocabulary, size.hidden, bias=False))
    for layer in range(size.layers):
        here = f"{text}.layers.{layer}"
        yield from text_at(
            layer,
            column(f"{here}.self_attn.q_proj", size.hidden, size.hidden),
            column(f"{here}.self_attn.k_proj", width, size.hidden),
            column(f"{here}.self_attn.v_proj", width, size.hidden),
            row(f"{here}.self_attn.o_proj", size.hidden, size.hidden, bias=False),
            column(f"{here}.mlp.gate_up_proj", 2 * size.mlp, size.hidden, bias=False),
            row(f"{here}.mlp.down_proj", size.hidden, size.mlp, bias=False),
            *(whole(f"{here}.{norm}", size.hidden) for norm in norms),
        )
    yield from text_at(LAST, whole(f"{text}.norm", size.hidden))
    yield from text_at(LAST, column("lm_head", size.vocabulary, size.hidden, bias=False))


@dataclass(frozen=True, kw_only=True)
class GlmVision:
    """Sizes of the vision encoder; the defaults are those of the published model."""

    layers: int = 24
    width: int = 1536
    output: int = 4096
    mlp: int = 13696
    patch: int = 14
    image: int = 336


GLM_VISION = GlmVision()


def glm_vision(vision: GlmVision = GLM_VISION) -> Iterator[Tensor]:
    width, output, mlp, patch = vision.width, vision.output, vision.mlp, vision.patch
    yield from vision_at(
        FIRST,
        whole("model.visual.patch_embed.proj", width, 3, 2, patch, patch, bias=True),
        whole("model.visual.post_conv_layernorm", width),
        whole("model.visual.embeddings.position_embedding", (vision.image // patch) ** 2, width),
    )
    for layer in range(vision.layers):
        here = f"model.visual.blocks.{layer}"
        yield from vision_at(
            layer,
            whole(f"{here}.norm1", width),
            whole(f"{here}.norm2", width),
            whole(f"{here}.attn.qkv", 3 * width, width),
            whole(f"{here}.attn.proj", width, width),
            column(f"{here}.mlp.gate_proj", output, width, bias=False),
            column(f"{here}.mlp.up_proj", output, width, bias=False),
            row(f"{here}.mlp.down_proj", width, output, bias=False),
        )
    yield from vision_at(
        LAST,
        whole("model.visual.post_layernorm", width),
        whole("model.visual.downsample", output, width, 2, 2, bias=True),
        whole("model.visual.merger.proj", output, output),
        whole("model.visual.merger.post_projection_norm", output, bias=True),
        whole("model.visual.merger.gate_proj", mlp, output),
        whole("model.visual.merger.up_proj", mlp, output),
        whole("model.visual.merger.down_proj", output, mlp),
    )


# DeepSeek-VL2 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DeepSeek:
    """Sizes of a language model; `correction`: the router has a bias. Defaults are alike in all."""

    layers: int
    hidden: int
    heads: int
    mlp: int
    experts: int
    expert_mlp: int
    shared: int
    dense_layers: int
    vocabulary: int
    q_rank: int | None = None
    latent: bool = True
    correction: bool = False
    kv_rank: int = 512
    rope_dim: int = 64
    nope_dim: int = 128
    value_dim: int = 128


def deepseek_attention(size: DeepSeek, here: str) -> Iterator[Piece]:
    """Of latent attention q and the latent kv, or their low-rank forms, are in every rank."""
    query_rows, latent, hidden = size.heads * (size.nope_dim + size.rope_dim), size.kv_rank, size.hidden
    if not size.latent:
        for letter in "qkv":
            yield from column(f"{here}.{letter}_proj", hidden, hidden, bias=False)
        yield from row(f"{here}.o_proj", hidden, hidden, bias=False)
        return
    if size.q_rank is None:
        yield from whole(f"{here}.q_proj", query_rows, hidden)
    else:
        yield from whole(f"{here}.q_a_proj", size.q_rank, hidden)
        yield from whole(f"{here}.q_a_layernorm", size.q_rank)
        yield from column(f"{here}.q_b_proj", query_rows, size.q_rank, bias=False)
    yield from whole(f"{here}.kv_a_proj_with_mqa", latent + size.rope_dim, hidden)
    yield from whole(f"{here}.kv_a_layernorm", latent)
    yield from column(f"{here}.kv_b_proj", size.heads * (size.nope_dim + size.value_dim), latent, bias=False)
    yield from row(f"{here}.o_proj", hidden, size.heads * size.value_dim, bias=False)


def deepseek_text(size: DeepSeek) -> Iterator[Tensor]:
    text, hidden = "language.model", size.hidden
    yield from text_at(FIRST, column(f"{text}.embed_tokens", size.vocabulary, hidden, bias=False))
    for layer in range(size.layers):
        here = f"{text}.layers.{layer}"
        yield from text_at(
            layer,
            deepseek_attention(size, f"{here}.self_attn"),
            whole(f"{here}.input_layernorm", hidden),
            whole(f"{here}.post_attention_layernorm", hidden),
        )
        if layer < size.dense_layers:
            yield from text_at(layer, gated_mlp(f"{here}.mlp", hidden, size.mlp))
            continue
        yield from text_at(
            layer,
            whole(f"{here}.mlp.gate", size.experts, hidden),
            [(f"{here}.mlp.gate.e_score_correction_bias", (size.experts,), WHOLE)] if size.correction else [],
            gated_mlp(f"{here}.mlp.shared_experts", hidden, size.shared * size.expert_mlp),
        )
        for expert in range(size.experts):
            for tensor in text_at(layer, gated_mlp(f"{here}.mlp.experts.{expert}", hidden, size.expert_mlp)):
                yield replace(tensor, expert=expert)
    yield from text_at(LAST, whole(f"{text}.norm", hidden))
    yield from text_at(LAST, column("language.lm_head", size.vocabulary, hidden, bias=False))


SIGLIP = Tower(27, 1152, 14)


def siglip(hidden: int, *, tower: Tower = SIGLIP, mlp: int = 4304, positions: int = 729) -> Iterator[Tensor]:
    """The vision encoder and the projector of all sizes."""
    width, patch = tower.width, tower.patch
    yield from vision_at(FIRST, whole("vision.patch_embed.proj", width, 3, patch, patch, bias=True))
    yield from vision_at(FIRST, [("vision.pos_embed", (1, positions, width), WHOLE)])
    for layer in range(tower.layers):
        here = f"vision.blocks.{layer}"
        yield from vision_at(
            layer,
            whole(f"{here}.norm1", width, bias=True),
            whole(f"{here}.norm2", width, bias=True),
            whole(f"{here}.attn.qkv", 3 * width, width, bias=True),
            whole(f"{here}.attn.proj", width, width, bias=True),
            whole(f"{here}.mlp.fc1", mlp, width, bias=True),
            whole(f"{here}.mlp.fc2", width, mlp, bias=True),
        )
    pool = "vision.attn_pool"
    yield from vision_at(
        LAST,
        whole("vision.norm", width, bias=True),
        [(f"{pool}.latent", (1, 1, width), WHOLE)],
        whole(f"{pool}.q", width, width, bias=True),
        whole(f"{pool}.kv", 2 * width, width, bias=True),
        whole(f"{pool}.proj", width, width, bias=True),
        whole(f"{pool}.norm", width, bias=True),
        whole(f"{pool}.mlp.fc1", mlp, width, bias=True),
        whole(f"{pool}.mlp.fc2", width, mlp, bias=True),
        whole("projector.layers.0", hidden, 4 * width, bias=True),
        whole("projector.layers.2", hidden, hidden, bias=True),
    )
    yield from vision_at(EVERY, [(name, (hidden,), WHOLE) for name in ("image_newline", "view_seperator")])
