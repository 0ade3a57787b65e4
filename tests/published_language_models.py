"""The published sizes of language models: `config.json`, tensors, and layouts that divide them.

Facts about other people's files, from the model cards and the hub. As in `published`, nothing of it comes from the
definitions under `conf/model/` or from distconv; it imports neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.published import Layout, Published
from tests.published_towers import (
    EQUAL,
    FIRST,
    LAST,
    WHOLE,
    Piece,
    Tensor,
    Text,
    column,
    gated_mlp,
    row,
    text_at,
    whole,
)


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Sizes of latent attention; those of all DeepSeek-V3."""

    q_rank: int | None = 1536
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sizes of a mixture of experts: `dense` layers come first, `parts` are the names of gate, up and down."""

    experts: int
    mlp: int
    shared: int = 0
    dense: int = 0
    bias_of_router: bool = False
    router: str = "mlp.gate"
    module: str = "mlp.experts"
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What a language model has beside the sizes of its tables; `further`: its layers that predict further tokens."""

    size: Text
    head_dim: int | None = None
    biases: tuple[str, ...] = ()
    norms_of_heads: bool = False
    latent: Latent | None = None
    mixture: Mixture | None = None
    sinks: bool = False
    further: int = 0

    @property
    def width(self) -> int:
        """The width of a head."""
        return self.head_dim or self.size.hidden // self.size.heads


def language_model(decoder: Decoder) -> Iterator[Tensor]:
    """The tensors of a language model, and where Megatron-core's local spec has them."""
    size = decoder.size
    yield from text_at(FIRST, column("model.embed_tokens", size.vocabulary, size.hidden, bias=False))
    for layer in range(size.layers + decoder.further):
        place = layer if layer < size.layers else LAST
        here = f"model.layers.{layer}"
        attention = _latent_attention if decoder.latent is not None else _attention
        yield from text_at(
            place,
            attention(decoder, f"{here}.self_attn"),
            whole(f"{here}.input_layernorm", size.hidden),
            whole(f"{here}.post_attention_layernorm", size.hidden),
        )
        yield from _mlp(decoder, here, layer, place)
        if place == LAST:
            yield from _prediction(decoder, here)
    yield from text_at(LAST, whole("model.norm", size.hidden))
    if not size.tied:
        yield from text_at(LAST, column("lm_head", size.vocabulary, size.hidden, bias=False))


def _attention(decoder: Decoder, here: str) -> Iterator[Piece]:
    size, width = decoder.size, decoder.width
    for part, heads in (("q", size.heads), ("k", size.kv_heads), ("v", size.kv_heads)):
        yield from column(f"{here}.{part}_proj", heads * width, size.hidden, bias="qkv" in decoder.biases)
    yield from row(f"{here}.o_proj", size.hidden, size.heads * width, bias="o" in decoder.biases)
    if decoder.norms_of_heads:
        yield from whole(f"{here}.q_norm", width)
        yield from whole(f"{here}.k_norm", width)
    if decoder.sinks:
        yield f"{here}.sinks", (size.heads,), EQUAL


def _latent_attention(decoder: Decoder, here: str) -> Iterator[Piece]:
    size, latent = decoder.size, decoder.latent
    assert latent is not None
    query = size.heads * (latent.nope + latent.rope)
    if latent.q_rank is None:
        yield from column(f"{here}.q_proj", query, size.hidden, bias=False)
    else:
        yield from column(f"{here}.q_a_proj", latent.q_rank, size.hidden, bias=False)
        yield from whole(f"{here}.q_a_layernorm", latent.q_rank)
        yield from column(f"{here}.q_b_proj", query, latent.q_rank, bias=False)
    yield from column(f"{here}.kv_a_proj_with_mqa", latent.kv_rank + latent.rope, size.hidden, bias=False)
    yield from whole(f"{here}.kv_a_layernorm", latent.kv_rank)
    rows = size.heads * (latent.nope + latent.value)
    yield from column(f"{here}.kv_b_proj", rows, latent.kv_rank, bias=False)
    yield from row(f"{here}.o_proj", size.hidden, size.heads * latent.value, bias=False)


def _mlp(decoder: Decoder, here: str, layer: int, place: str | int) -> Iterator[Tensor]:
    hidden, mixture = decoder.size.hidden, decoder.mixture
    if mixture is None or layer < mixture.dense:
        yield from text_at(place, gated_mlp(f"{here}.mlp", hidden, decoder.size.mlp))
        return
    yield from text_at(place, whole(f"{here}.{mixture.router}", mixture.experts, hidden, bias=decoder.sinks))
    if mixture.bias_of_router:
        yield from text_at(place, [(f"{here}.{mixture.router}.e_score_correction_bias", (mixture.experts,), WHOLE)])
    if mixture.shared:
        yield from text_at(place, gated_mlp(f"{here}.mlp.shared_experts", hidden, mixture.shared * mixture.mlp))
    module = f"{here}.{mixture.module}"
    if decoder.sinks:
        for tensor in text_at(place, _packed(module, mixture, hidden)):
            yield replace(tensor, packed=mixture.experts)
        return
    gate, up, down = mixture.parts
    for expert in range(mixture.experts):
        pieces = (
            column(f"{module}.{expert}.{gate}", mixture.mlp, hidden, bias=False),
            column(f"{module}.{expert}.{up}", mixture.mlp, hidden, bias=False),
            row(f"{module}.{expert}.{down}", hidden, mixture.mlp, bias=False),
        )
        for tensor in text_at(place, *pieces):
            yield replace(tensor, expert=expert)


def _packed(module: str, mixture: Mixture, hidden: int) -> Iterable[Piece]:
    experts, mlp = mixture.experts, mixture.mlp
    yield f"{module}.gate_up_proj", (experts, hidden, 2 * mlp), EQUAL
    yield f"{module}.gate_up_proj_bias", (experts, 2 * mlp), EQUAL
    yield f"{module}.down_proj", (experts, mlp, hidden), EQUAL
    yield f"{module}.down_proj_bias", (experts, hidden), WHOLE


def _prediction(decoder: Decoder, here: str) -> Iterator[Tensor]:
    hidden, vocabulary = decoder.size.hidden, decoder.size.vocabulary
    yield from text_at(
        LAST,
        whole(f"{here}.enorm", hidden),
        whole(f"{here}.hnorm", hidden),
        column(f"{here}.eh_proj", hidden, 2 * hidden, bias=False),
        whole(f"{here}.shared_head.norm", hidden),
    )
    for name in ("embed_tokens", "shared_head.head"):
        for tensor in text_at(LAST, whole(f"{here}.{name}", vocabulary, hidden)):
            yield replace(tensor, left_out=True)


def of(name: str, family: str, decoder: Decoder, *layouts: Layout, parameters: int | None, **fields: Any) -> Published:
    """A published language model; `fields` are those that its `config.json` has beside the sizes of the tables.

    `parameters`: without the copies that are left out.
    """
    config = {"model_type": family, **decoder.size.fields(), **fields}
    mixture, latent = decoder.mixture, decoder.latent
    if decoder.head_dim is not None:
        config["head_dim"] = decoder.head_dim
    if latent is not None:
        config |= {"q_lora_rank": latent.q_rank, "kv_lora_rank": latent.kv_rank, "v_head_dim": latent.value}
        config |= {"qk_nope_head_dim": latent.nope, "qk_rope_head_dim": latent.rope}
    if mixture is not None and mixture.bias_of_router:
        config |= {"n_routed_experts": mixture.experts, "n_shared_experts": mixture.shared}
        config |= {"first_k_dense_replace": mixture.dense, "num_nextn_predict_layers": decoder.further}
    elif mixture is not None:
        config["num_experts" if family == "qwen3_moe" else "num_local_experts"] = mixture.experts
    if mixture is not None and family not in ("mixtral", "gpt_oss"):
        config["moe_intermediate_size"] = mixture.mlp
    return Published(
        name=name,
        definition=family,
        configs=(config,),
        tensors=lambda: language_model(decoder),
        layouts=layouts,
        tied=decoder.size.tied,
        predicts=decoder.further > 0,
        experts=None if mixture is None else mixture.experts,
        parameters=parameters,
    )


def llama(name: str, size: Text, *layouts: Layout, parameters: int, family: str = "llama") -> Published:
    return of(name, family, Decoder(size=size), *layouts, parameters=parameters)


def qwen2(name: str, size: Text, *layouts: Layout, parameters: int) -> Published:
    return of(name, "qwen2", Decoder(size=size, biases=("qkv",)), *layouts, parameters=parameters)


def qwen3(
    name: str, size: Text, *layouts: Layout, mixture: Mixture | None = None, parameters: int | None = None
) -> Published:
    decoder = Decoder(size=size, head_dim=128, norms_of_heads=True, mixture=mixture)
    family = "qwen3" if mixture is None else "qwen3_moe"
    return of(name, family, decoder, *layouts, parameters=parameters, attention_bias=False)


def glm(name: str, decoder: Decoder, *layouts: Layout, parameters: int) -> Published:
    return of(
        name, "glm4_moe", decoder, *layouts, parameters=parameters, attention_bias=True,
        use_qk_norm=decoder.norms_of_heads,
    )  # fmt: skip


def gpt_oss(name: str, layers: int, experts: int, *layouts: Layout, parameters: int) -> Published:
    decoder = Decoder(
        size=Text(layers, 2880, 64, 8, 2880, 201088),
        head_dim=64,
        biases=("qkv", "o"),
        sinks=True,
        mixture=Mixture(experts=experts, mlp=2880, router="mlp.router"),
    )
    return of(name, "gpt_oss", decoder, *layouts, parameters=parameters)


def mixtral(name: str, size: Text, *layouts: Layout, parameters: int) -> Published:
    mixture = Mixture(
        experts=8,
        mlp=size.mlp,
        router="block_sparse_moe.gate",
        module="block_sparse_moe.experts",
        parts=("w1", "w3", "w2"),
    )
    return of(name, "mixtral", Decoder(size=size, mixture=mixture), *layouts, parameters=parameters)


def laid_out(*text: int, tp: int = 1, ep: int = 1, rows: list[list[int]] | None = None) -> Layout:
    """A layout of a model without encoders; `rows` for several virtual stages."""
    return Layout(text=rows or [list(text)], vision=[], tp=tp, ep=ep)


MIXTURE_OF_DEEPSEEK = Mixture(experts=256, mlp=2048, shared=1, dense=3, bias_of_router=True)
LANGUAGE_MODELS = (
    llama("Llama-2-7B", Text(32, 4096, 32, 32, 11008, 32000), laid_out(32, tp=2), parameters=6_738_415_616),
    llama(
        "Llama-3.1-8B",
        Text(32, 4096, 32, 8, 14336, 128256),
        laid_out(32),
        laid_out(15, 17, tp=4),
        parameters=8_030_261_248,
    ),
    llama(
        "Llama-3.1-70B", Text(80, 8192, 64, 8, 28672, 128256), laid_out(20, 20, 20, 20, tp=8), parameters=70_553_706_496
    ),
    llama(
        "Llama-3.1-405B",
        Text(126, 16384, 128, 8, 53248, 128256),
        laid_out(*[8] * 15, 6, tp=8),
        parameters=405_853_388_800,
    ),
    llama("Llama-3.2-1B", Text(16, 2048, 32, 8, 8192, 128256, tied=True), laid_out(8, 8), parameters=1_235_814_400),
    llama(
        "Mistral-7B-v0.1",
        Text(32, 4096, 32, 8, 14336, 32000),
        laid_out(32, tp=8),
        parameters=7_241_732_096,
        family="mistral",
    ),
    llama(
        "Mistral-7B-v0.3",
        Text(32, 4096, 32, 8, 14336, 32768),
        laid_out(16, 16),
        parameters=7_248_023_552,
        family="mistral",
    ),
    qwen2(
        "Qwen2.5-0.5B", Text(24, 896, 14, 2, 4864, 151936, tied=True), laid_out(12, 12, tp=2), parameters=494_032_768
    ),
    qwen2("Qwen2.5-7B", Text(28, 3584, 28, 4, 18944, 152064), laid_out(7, 7, 7, 7, tp=4), parameters=7_615_616_512),
    qwen2(
        "Qwen2.5-72B",
        Text(80, 8192, 64, 8, 29568, 152064),
        laid_out(tp=8, rows=[[10, 10, 10, 10], [10, 10, 10, 10]]),
        parameters=72_706_203_648,
    ),
    qwen3(
        "Qwen3-0.6B",
        Text(28, 1024, 16, 8, 3072, 151936, tied=True),
        laid_out(28),
        laid_out(14, 14),
        parameters=596_049_920,
    ),
    qwen3("Qwen3-8B", Text(36, 4096, 32, 8, 12288, 151936), laid_out(18, 18, tp=8), parameters=8_190_735_360),
    qwen3("Qwen3-32B", Text(64, 5120, 64, 8, 25600, 151936), laid_out(16, 16, 16, 16, tp=8), parameters=32_762_123_264),
    qwen3(
        "Qwen3-30B-A3B",
        Text(48, 2048, 32, 4, 6144, 151936),
        laid_out(24, 24, tp=2, ep=8),
        mixture=Mixture(experts=128, mlp=768),
        parameters=30_532_122_624,
    ),
    qwen3(
        "Qwen3-235B-A22B",
        Text(94, 4096, 64, 4, 12288, 151936),
        laid_out(23, 24, 24, 23, tp=4, ep=8),
        mixture=Mixture(experts=128, mlp=1536),
        parameters=235_093_634_560,
    ),
    mixtral(
        "Mixtral-8x7B", Text(32, 4096, 32, 8, 14336, 32000), laid_out(16, 16, tp=2, ep=8), parameters=46_702_792_704
    ),
    mixtral(
        "Mixtral-8x22B",
        Text(56, 6144, 48, 8, 16384, 32768),
        laid_out(*[14] * 4, tp=4, ep=2),
        parameters=140_630_071_296,
    ),
    of(
        "DeepSeek-V3",
        "deepseek_v3",
        Decoder(
            size=Text(61, 7168, 128, 128, 18432, 129280),
            latent=Latent(),
            mixture=MIXTURE_OF_DEEPSEEK,
            further=1,
        ),
        laid_out(4, *[4] * 14, 1, ep=32),
        laid_out(*[8] * 7, 5, tp=4, ep=8),
        parameters=None,
    ),
    # The same without the layer that predicts, as transformers saves it.
    of(
        "DeepSeek-V3 without MTP",
        "deepseek_v3",
        Decoder(size=Text(61, 7168, 128, 128, 18432, 129280), latent=Latent(), mixture=MIXTURE_OF_DEEPSEEK),
        laid_out(61, ep=64),
        parameters=671_026_419_200,
    ),
    of(
        "Moonlight-16B-A3B",
        "deepseek_v3",
        Decoder(
            size=Text(27, 2048, 16, 16, 11264, 163840),
            latent=Latent(q_rank=None),
            mixture=Mixture(experts=64, mlp=1408, shared=2, dense=1, bias_of_router=True),
        ),
        laid_out(13, 14, tp=2, ep=4),
        parameters=None,
    ),
    glm(
        "GLM-4.5",
        Decoder(
            size=Text(92, 5120, 96, 8, 12288, 151552),
            head_dim=128,
            biases=("qkv",),
            norms_of_heads=True,
            mixture=Mixture(experts=160, mlp=1536, shared=1, dense=3, bias_of_router=True),
            further=1,
        ),
        laid_out(*[12] * 7, 8, tp=8, ep=16),
        parameters=358_337_791_296 - 2 * 151552 * 5120,
    ),
    glm(
        "GLM-4.5-Air",
        Decoder(
            size=Text(46, 4096, 96, 8, 10944, 151552),
            head_dim=128,
            biases=("qkv",),
            mixture=Mixture(experts=128, mlp=1408, shared=1, dense=1, bias_of_router=True),
            further=1,
        ),
        laid_out(23, 23, tp=4, ep=8),
        parameters=110_468_824_832 - 2 * 151552 * 4096,
    ),
    gpt_oss("gpt-oss-20b", 24, 32, laid_out(12, 12, tp=4, ep=4), parameters=20_914_757_184),
    gpt_oss("gpt-oss-120b", 36, 128, laid_out(9, 9, 9, 9, tp=8, ep=8), parameters=116_829_156_672),
)
