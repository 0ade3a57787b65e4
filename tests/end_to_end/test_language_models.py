"""Language models of which no sample was saved by training: there and back in every dialect, with known names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distconv.errors import InputError
from tests.here import outcome_here, run_here

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, EXPERT_MLP, VOCABULARY, EXPERTS, LAYERS = 32, 4, 2, 16, 48, 16, 60, 4, 4
CONFIG = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": MLP,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}
MIXTURE = {"n_routed_experts": EXPERTS, "moe_intermediate_size": EXPERT_MLP, "n_shared_experts": 1}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {},
    "mixtral": {"num_local_experts": EXPERTS},
    "gpt_oss": {"num_local_experts": EXPERTS},
    "deepseek_v3": {**MIXTURE, **LATENT, "num_nextn_predict_layers": 1},
    "glm4_moe": {**MIXTURE, "num_nextn_predict_layers": 1},
}
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def shapes(family: str) -> Shapes:
    """The names and shapes of a published model."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    predicts = family in ("deepseek_v3", "glm4_moe")
    for layer in range(LAYERS + predicts):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (HIDDEN,)
        yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
        for name, shape in (*attention(family), *mlp(family, dense=layer == 0)):
            yield f"{at}.{name}", shape
    if predicts:
        at = f"model.layers.{LAYERS}"
        yield f"{at}.enorm.weight", (HIDDEN,)
        yield f"{at}.hnorm.weight", (HIDDEN,)
        yield f"{at}.eh_proj.weight", (HIDDEN, 2 * HIDDEN)
        yield f"{at}.shared_head.norm.weight", (HIDDEN,)
        yield f"{at}.shared_head.head.weight", (VOCABULARY, HIDDEN)
        yield f"{at}.embed_tokens.weight", (VOCABULARY, HIDDEN)


def attention(family: str) -> Shapes:
    if family == "deepseek_v3":
        yield "self_attn.q_a_proj.weight", (24, HIDDEN)
        yield "self_attn.q_a_layernorm.weight", (24,)
        yield "self_attn.q_b_proj.weight", (HEADS * 12, 24)
        yield "self_attn.kv_a_proj_with_mqa.weight", (20, HIDDEN)
        yield "self_attn.kv_a_layernorm.weight", (16,)
        yield "self_attn.kv_b_proj.weight", (HEADS * 20, 16)
        yield "self_attn.o_proj.weight", (HIDDEN, HEADS * 12)
        return
    for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        yield f"self_attn.{part}_proj.weight", (heads * HEAD_DIM, HIDDEN)
        if family in ("gpt_oss", "glm4_moe"):
            yield f"self_attn.{part}_proj.bias", (heads * HEAD_DIM,)
    yield "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)
    if family == "gpt_oss":
        yield "self_attn.o_proj.bias", (HIDDEN,)
        yield "self_attn.sinks", (HEADS,)


def mlp(family: str, *, dense: bool) -> Shapes:
    if family == "gpt_oss":
        yield "mlp.router.weight", (EXPERTS, HIDDEN)
        yield "mlp.router.bias", (EXPERTS,)
        yield "mlp.experts.gate_up_proj", (EXPERTS, HIDDEN, 2 * MLP)
        yield "mlp.experts.gate_up_proj_bias", (EXPERTS, 2 * MLP)
        yield "mlp.experts.down_proj", (EXPERTS, MLP, HIDDEN)
        yield "mlp.experts.down_proj_bias", (EXPERTS, HIDDEN)
    elif family == "mixtral":
        yield "block_sparse_moe.gate.weight", (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for part, shape in (("w1", (MLP, HIDDEN)), ("w3", (MLP, HIDDEN)), ("w2", (HIDDEN, MLP))):
                yield f"block_sparse_moe.experts.{expert}.{part}.weight", shape
    elif family == "mistral" or dense:
        yield from linears("mlp", MLP)
    else:
        yield "mlp.gate.weight", (EXPERTS, HIDDEN)
        yield "mlp.gate.e_score_correction_bias", (EXPERTS,)
        yield from linears("mlp.shared_experts", EXPERT_MLP)
        for expert in range(EXPERTS):
            yield from linears(f"mlp.experts.{expert}", EXPERT_MLP)


def linears(module: str, width: int) -> Shapes:
    yield f"{module}.gate_proj.weight", (width, HIDDEN)
    yield f"{module}.up_proj.weight", (width, HIDDEN)
    yield f"{module}.down_proj.weight", (HIDDEN, width)


def write_model(directory: Path, family: str) -> dict[str, torch.Tensor]:
    """Write a published model; every element of it is another one, but those of copies."""
    tensors, first = {}, 0
    for name, shape in shapes(family):
        count = int(np.prod(shape))
        tensors[name] = torch.arange(first, first + count, dtype=torch.float32).reshape(shape)
        first += count
    for name in tensors:
        if name.endswith((f"{LAYERS}.embed_tokens.weight", "shared_head.head.weight")):
            tensors[name] = tensors["lm_head.weight" if "head" in name else "model.embed_tokens.weight"].clone()
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **CONFIGS[family], "model_type": family}))
    return tensors


def rank(directory: Path, tp: int, pp: int, ep: int) -> dict[str, torch.Tensor]:
    """What a rank of a checkpoint of all axes holds."""
    path = directory / "release" / f"mp_rank_{tp:02}_{pp:03}_{ep:03}" / "model_optim_rng.pt"
    model: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return model


DIALECTS = ["mcore_local", "mcore_te", "mcore_grouped", "mcore_local_0_17", "mcore_te_0_17", "bridge", "mindspeed_mm"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_comes_back(family, dialect, tmp_path):
    tensors = write_model(tmp_path / "hf", family)
    ep = 1 if family == "mistral" else 2
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": ep, "dialect": dialect}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    outcome = outcome_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")
    layout = outcome.report["source_layout"]
    assert (layout["tp"], layout["pp"], layout["ep"]) == (2, 2, ep)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, each in tensors.items():
        assert torch.equal(back[name], each), name
    told = family not in ("mistral", "mixtral", "gpt_oss")
    if family != "mistral":
        assert outcome.report["source_names"]["dialect"] == (dialect if told else dialect.removesuffix("_0_17"))


@pytest.mark.parametrize("dialect", ["mcore_local", "mcore_te", "mcore_grouped"])
@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize(
    ("tp", "ep", "expert_tp", "there"),
    [
        (2, 2, 1, {(0, 0), (1, 1)}),
        (2, 4, 1, {(0, 0), (1, 1), (0, 2), (1, 3)}),
        (2, 1, 1, {(0, 0), (1, 0)}),
        (4, 2, 2, {(0, 0), (1, 0), (2, 1), (3, 1)}),
        (4, 4, 1, {(0, 0), (1, 1), (2, 2), (3, 3)}),
        (2, 2, 2, {(0, 0), (1, 0), (0, 1), (1, 1)}),
    ],
)
def test_experts_that_are_cut_otherwise_than_the_rest(tp, ep, expert_tp, there, pp, dialect, tmp_path):
    tensors = write_model(tmp_path / "hf", "deepseek_v3")
    made = {"layout__tp": tp, "layout__pp": pp, "layout__ep": ep, "layout__expert_tp": expert_tp}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), dialect=dialect, **made)
    names = {path.name.removeprefix("mp_rank_") for path in (tmp_path / "mm" / "release").glob("mp_rank_*")}
    numbers = {tuple(map(int, name.split("_"))) for name in names}
    assert {(number[0], number[-1] if ep > 1 else 0) for number in numbers} == there
    assert len(numbers) == len(there) * pp

    given = {"source_layout__expert_tp": expert_tp} if dialect == "mcore_grouped" else {}
    outcome = outcome_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf", **given)
    layout = outcome.report["source_layout"]
    assert (layout["tp"], layout["pp"], layout["ep"]) == (tp, pp, ep)
    assert layout["expert_tp"] == (None if expert_tp == tp else expert_tp)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], each) for name, each in tensors.items())


def test_a_rank_holds_its_whole_experts_and_half_of_the_rest(tmp_path):
    tensors = write_model(tmp_path / "hf", "mixtral")
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": 2, "layout__expert_tp": 1}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    held = rank(tmp_path / "mm", 1, 0, 1)
    at = "model.layers.0.block_sparse_moe.experts.3"
    expected = torch.cat([tensors[f"{at}.w1.weight"], tensors[f"{at}.w3.weight"]])
    assert torch.equal(held["decoder.layers.0.mlp.experts.local_experts.1.linear_fc1.weight"], expected)
    projection = tensors["model.layers.0.self_attn.o_proj.weight"]
    assert torch.equal(held["decoder.layers.0.self_attention.linear_proj.weight"], projection.chunk(2, 1)[1])


def test_a_rank_that_is_missing_beside_experts_that_are_cut_otherwise(tmp_path):
    write_model(tmp_path / "hf", "mixtral")
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": 4, "layout__expert_tp": 1}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    shutil.rmtree(tmp_path / "mm" / "release" / "mp_rank_01_001_001")
    with pytest.raises(InputError, match="is missing, although there are ranks up to mp_rank_01_001_003"):
        run_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")


@pytest.mark.parametrize(
    ("family", "options", "problem"),
    [
        ("mistral", {"layout__expert_tp": 1, "layout__tp": 2}, "layout.expert_tp=1: this model has no experts"),
        ("mixtral", {"layout__expert_tp": 3, "layout__tp": 2}, "expected a divisor of layout.tp=2"),
        ("mixtral", {"layout__expert_tp": 2, "layout__tp": 1}, "expected a divisor of layout.tp=1"),
    ],
)
def test_pieces_of_experts_that_there_cannot_be(family, options, problem, tmp_path):
    write_model(tmp_path / "hf", family)
    with pytest.raises(InputError, match=re.escape(problem)):
        run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **options)


def test_gate_and_up_of_gpt_oss_follow_each_other_on_every_rank(tmp_path):
    tensors = write_model(tmp_path / "hf", "gpt_oss")
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": 2}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    held = rank(tmp_path / "mm", 1, 1, 1)
    at = "decoder.layers.0"
    packed = tensors["model.layers.2.mlp.experts.gate_up_proj"][2].t()
    half = MLP // 2
    expected = torch.cat([packed[0::2][half:], packed[1::2][half:]])
    assert torch.equal(held[f"{at}.mlp.experts.local_experts.0.linear_fc1.weight"], expected)
    bias = tensors["model.layers.2.mlp.experts.gate_up_proj_bias"][2]
    expected = torch.cat([bias[0::2][half:], bias[1::2][half:]])
    assert torch.equal(held[f"{at}.mlp.experts.local_experts.0.linear_fc1.bias"], expected)
    down = tensors["model.layers.2.mlp.experts.down_proj"][2].t()
    assert torch.equal(held[f"{at}.mlp.experts.local_experts.0.linear_fc2.weight"], down[:, half:])
    sinks = tensors["model.layers.2.self_attn.sinks"]
    assert torch.equal(held[f"{at}.self_attention.core_attention.softmax_offset"], sinks[HEADS // 2 :])


@pytest.mark.parametrize(
    ("dialect", "names"),
    [
        (
            "mcore_local",
            {
                "mtp.layers.0.transformer_layer.input_layernorm.weight",
                "mtp.layers.0.transformer_layer.mlp.experts.local_experts.1.linear_fc2.weight",
                "mtp.layers.0.transformer_layer.self_attention.q_layernorm.weight",
            },
        ),
        (
            "mcore_te",
            {
                "mtp.layers.0.transformer_layer.input_layernorm.weight",
                "mtp.layers.0.transformer_layer.mlp.experts.linear_fc2.weight1",
                "mtp.layers.0.transformer_layer.self_attention.linear_q_up_proj.layer_norm_weight",
                "mtp.layers.0.transformer_layer.self_attention.linear_kv_up_proj.layer_norm_weight",
                "mtp.layers.0.transformer_layer.pre_mlp_layernorm.weight",
            },
        ),
        ("mcore_te_0_17", {"mtp.layers.0.mtp_model_layer.mlp.experts.linear_fc2.weight1"}),
        ("mcore_grouped", {"mtp.layers.0.transformer_layer.mlp.experts.weight1"}),
    ],
)
def test_the_layer_that_predicts_is_on_the_last_stage_with_an_embedding(dialect, names, tmp_path):
    write_model(tmp_path / "hf", "deepseek_v3")
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": 2, "dialect": dialect}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    first, last = rank(tmp_path / "mm", 0, 0, 0), rank(tmp_path / "mm", 0, 1, 0)
    assert not any(name.startswith("mtp.") for name in first)
    others = {f"mtp.layers.0.{part}.weight" for part in ("enorm", "hnorm", "eh_proj", "final_layernorm")}
    assert last.keys() >= names | others | {"embedding.word_embeddings.weight"}
    assert torch.equal(first["embedding.word_embeddings.weight"], last["embedding.word_embeddings.weight"])
    # Down projections are cut in the local spec, and whole in that of Transformer Engine.
    rows = first["decoder.layers.0.self_attention.linear_kv_down_proj.weight"].shape[0]
    assert rows == (20 if "te" in dialect else 10)


@pytest.mark.parametrize("name", ["embed_tokens", "shared_head.head"])
def test_a_copy_that_differs_is_refused(name, tmp_path):
    tensors = write_model(tmp_path / "hf", "glm4_moe")
    tensors[f"model.layers.{LAYERS}.{name}.weight"][3, 5] += 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(InputError, match="of which it must be a copy: the layer that predicts one more token shares"):
        run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"))
    assert not (tmp_path / "mm").exists()
