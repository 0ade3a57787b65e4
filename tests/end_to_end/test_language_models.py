"""Language models of which no sample was saved by training: there and back in every dialect, with known names."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distconv.errors import InputError
from tests.checkpoints import forget
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
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": EXPERT_MLP},
    "mixtral": {"num_local_experts": EXPERTS},
    "gpt_oss": {"num_local_experts": EXPERTS},
    "deepseek_v3": {**MIXTURE, **LATENT, "num_nextn_predict_layers": 1},
    "glm4_moe": {**MIXTURE, "num_nextn_predict_layers": 1},
}
DENSE = ("llama", "mistral", "qwen2", "qwen3")
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def shapes(family: str, further: int = 1, q_rank: int | None = 24) -> Shapes:
    """The names and shapes of a published model; `further`: its layers that predict further tokens, if it has any."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    predicts = further if family in ("deepseek_v3", "glm4_moe") else 0
    for layer in range(LAYERS + predicts):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (HIDDEN,)
        yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
        for name, shape in (*attention(family, q_rank), *mlp(family, dense=layer == 0)):
            yield f"{at}.{name}", shape
    for layer in range(LAYERS, LAYERS + predicts):
        at = f"model.layers.{layer}"
        yield f"{at}.enorm.weight", (HIDDEN,)
        yield f"{at}.hnorm.weight", (HIDDEN,)
        yield f"{at}.eh_proj.weight", (HIDDEN, 2 * HIDDEN)
        yield f"{at}.shared_head.norm.weight", (HIDDEN,)
        yield f"{at}.shared_head.head.weight", (VOCABULARY, HIDDEN)
        yield f"{at}.embed_tokens.weight", (VOCABULARY, HIDDEN)


def attention(family: str, q_rank: int | None) -> Shapes:
    if family == "deepseek_v3":
        if q_rank is None:
            yield "self_attn.q_proj.weight", (HEADS * 12, HIDDEN)
        else:
            yield "self_attn.q_a_proj.weight", (q_rank, HIDDEN)
            yield "self_attn.q_a_layernorm.weight", (q_rank,)
            yield "self_attn.q_b_proj.weight", (HEADS * 12, q_rank)
        yield "self_attn.kv_a_proj_with_mqa.weight", (20, HIDDEN)
        yield "self_attn.kv_a_layernorm.weight", (16,)
        yield "self_attn.kv_b_proj.weight", (HEADS * 20, 16)
        yield "self_attn.o_proj.weight", (HIDDEN, HEADS * 12)
        return
    for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        yield f"self_attn.{part}_proj.weight", (heads * HEAD_DIM, HIDDEN)
        if family in ("gpt_oss", "glm4_moe", "qwen2"):
            yield f"self_attn.{part}_proj.bias", (heads * HEAD_DIM,)
    yield "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)
    if family in ("qwen3", "qwen3_moe"):
        yield "self_attn.q_norm.weight", (HEAD_DIM,)
        yield "self_attn.k_norm.weight", (HEAD_DIM,)
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
    elif family in DENSE or dense:
        yield from linears("mlp", MLP)
    else:
        yield "mlp.gate.weight", (EXPERTS, HIDDEN)
        if family != "qwen3_moe":
            yield "mlp.gate.e_score_correction_bias", (EXPERTS,)
            yield from linears("mlp.shared_experts", EXPERT_MLP)
        for expert in range(EXPERTS):
            yield from linears(f"mlp.experts.{expert}", EXPERT_MLP)


def linears(module: str, width: int) -> Shapes:
    yield f"{module}.gate_proj.weight", (width, HIDDEN)
    yield f"{module}.up_proj.weight", (width, HIDDEN)
    yield f"{module}.down_proj.weight", (HIDDEN, width)


def write_model(directory: Path, family: str, further: int = 1, q_rank: int | None = 24) -> dict[str, torch.Tensor]:
    """Write a published model; every element of it is another one, but those of copies."""
    tensors, first = {}, 0
    for name, shape in shapes(family, further, q_rank):
        count = int(np.prod(shape))
        tensors[name] = torch.arange(first, first + count, dtype=torch.float32).reshape(shape)
        first += count
    for name in tensors:
        if ".layers." in name and name.endswith(("embed_tokens.weight", "shared_head.head.weight")):
            tensors[name] = tensors["lm_head.weight" if "head" in name else "model.embed_tokens.weight"].clone()
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    config = {**CONFIG, **CONFIGS[family], "model_type": family}
    config |= {"num_nextn_predict_layers": further, "q_lora_rank": q_rank} if "n_routed_experts" in config else {}
    (directory / "config.json").write_text(json.dumps(config))
    return tensors


def rank(directory: Path, tp: int, pp: int, ep: int) -> dict[str, torch.Tensor]:
    """What a rank of a checkpoint of all axes holds."""
    path = directory / "release" / f"mp_rank_{tp:02}_{pp:03}_{ep:03}" / "model_optim_rng.pt"
    model: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return model


DIALECTS = [
    "mcore_local", "mcore_te", "mcore_te_sequential", "mcore_grouped", "mcore_local_0_17", "mcore_te_0_17", "bridge",
    "mindspeed_mm", "mindspeed_llm", "mindspeed_llm_grouped",
]  # fmt: skip
# The names that a dialect has in common with another one where a model has no layers that predict.
ALIKE = {
    "mcore_local_0_17": "mcore_local",
    "mcore_te_0_17": "mcore_te",
    "mindspeed_llm": "mcore_local",
    "mindspeed_llm_grouped": "mcore_grouped",
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_comes_back(family, dialect, tmp_path):
    tensors = write_model(tmp_path / "hf", family)
    ep = 1 if family in DENSE else 2
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": ep, "dialect": dialect}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    forget(tmp_path / "mm")
    outcome = outcome_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")
    layout = outcome.report["source_layout"]
    assert (layout["tp"], layout["pp"], layout["ep"]) == (2, 2, ep)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, each in tensors.items():
        assert torch.equal(back[name], each), name
    told = family in ("deepseek_v3", "glm4_moe")
    if family not in DENSE:
        assert outcome.report["source_names"]["dialect"] == (dialect if told else ALIKE.get(dialect, dialect))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("family", "q_rank"), [("deepseek_v3", 24), ("deepseek_v3", None), ("glm4_moe", None)])
@pytest.mark.parametrize("further", [0, 3])
def test_any_number_of_layers_that_predict(family, q_rank, further, dialect, tmp_path):
    tensors = write_model(tmp_path / "hf", family, further, q_rank)
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": 2, "dialect": dialect}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    last = rank(tmp_path / "mm", 0, 1, 0)
    numbers = {int(match[1]) for name in last if (match := re.search(r"mtp\.\w+\.(\d+)\.", name))}
    assert numbers == set(range(further))
    outcome = outcome_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")
    assert outcome.report["source_names"]["dialect"] == dialect
    forget(tmp_path / "mm")
    run_here(source=str(tmp_path / "mm"), target=str(tmp_path / "recognised"), target_format="hf")
    for directory in ("back", "recognised"):
        back = load_file(tmp_path / directory / "model.safetensors")
        assert back.keys() == tensors.keys()
        for name, each in tensors.items():
            assert torch.equal(back[name], each), name


@pytest.mark.parametrize("said", [None, 0])
def test_a_layer_that_predicts_need_not_be_said(said, tmp_path):
    """Programs leave the field out, or say that they do not use the layer."""
    tensors = write_model(tmp_path / "hf", "glm4_moe")
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"num_nextn_predict_layers": said}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"))
    run_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("lacks", ["enorm.weight", "mlp.gate.weight", "self_attn.o_proj.weight", None])
def test_a_checkpoint_has_all_layers_that_predict_or_none(lacks, tmp_path):
    tensors = write_model(tmp_path / "hf", "deepseek_v3", 2)
    last = f"model.layers.{LAYERS + 1}."
    kept = {name: each for name, each in tensors.items() if not (name.startswith(last) and name.endswith(lacks or ""))}
    save_file(kept, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(InputError, match=re.escape(f"source tensor {last}{lacks or 'enorm.weight'} is missing")):
        run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"))


@pytest.mark.parametrize("q_rank", [24, None])
def test_mindspeed_llm_has_down_projections_in_one_and_final_norms_elsewhere(q_rank, tmp_path):
    tensors = write_model(tmp_path / "hf", "deepseek_v3", 2, q_rank)
    made = {"layout__tp": 2, "layout__pp": 2, "layout__ep": 2, "dialect": "mindspeed_llm"}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    for tp in range(2):
        first, last = rank(tmp_path / "mm", tp, 0, 0), rank(tmp_path / "mm", tp, 1, 0)
        places = {"decoder.layers.1": (first, 1), "mtp.layers.1.transformer_layer": (last, LAYERS + 1)}
        for at, (held, layer) in places.items():
            parts = [f"model.layers.{layer}.self_attn.{part}.weight" for part in
                     ("q_proj" if q_rank is None else "q_a_proj", "kv_a_proj_with_mqa")]  # fmt: skip
            expected = torch.cat([tensors[part] for part in parts])
            assert torch.equal(held[f"{at}.self_attention.linear_qkv.weight"], expected)
        assert torch.equal(last["final_layernorm.weight"], tensors["model.norm.weight"])
        expected = tensors[f"model.layers.{LAYERS + 1}.shared_head.norm.weight"]
        assert torch.equal(last["mtp.final_layernorms.1.weight"], expected)
        assert not any("decoder.final" in name or "down_proj" in name for name in first.keys() | last.keys())


def test_parts_of_one_parameter_have_one_element_type(tmp_path):
    tensors = write_model(tmp_path / "hf", "deepseek_v3")
    name = "model.layers.2.self_attn.kv_a_proj_with_mqa.weight"
    save_file(tensors | {name: tensors[name].to(torch.bfloat16)}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(InputError, match=r"linear_kv_down_proj\.weight are one parameter in this dialect, but are"):
        run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), dialect="mindspeed_llm")
    assert not (tmp_path / "mm").exists()


def change(
    directory: Path, of_model: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]], **beside: Any
) -> None:
    """Change what the files of all ranks hold of the model, and beside it."""
    for path in directory.rglob("*.pt"):
        content = torch.load(path, weights_only=True)
        torch.save(content | beside | {"model": of_model(content["model"])}, path)


@pytest.mark.parametrize(("tp", "is_refused"), [(2, True), (1, False)])
def test_experts_that_are_spread_over_tensor_parallel_ranks_are_refused(tp, is_refused, tmp_path):
    """In grouped experts, whole ones of half the ranks look as halves of all."""
    write_model(tmp_path / "hf", "glm4_moe")
    made = {"layout__tp": tp, "layout__ep": 2, "dialect": "mindspeed_llm_grouped"}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    args = Namespace(moe_tp_extend_ep=True, tensor_model_parallel_size=tp)
    change(tmp_path / "mm", lambda model: model, args=args)
    back = {"source": str(tmp_path / "mm"), "target": str(tmp_path / "back"), "target_format": "hf"}
    if is_refused:
        with pytest.raises(InputError, match="was trained with --moe-tp-extend-ep, which gives experts to pairs of"):
            run_here(**back)
    else:
        run_here(**back)


def test_up_projections_that_are_split_are_refused_for_what_they_are(tmp_path):
    write_model(tmp_path / "hf", "deepseek_v3")
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), dialect="mindspeed_llm")

    def split(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, each in model.items():
            parts = {"linear_q_up_proj": ("qk_nope", "qk_rope"), "linear_kv_up_proj": ("kv_nope", "v")}
            old = next((part for part in parts if part in name), None)
            for part in parts[old] if old else ():
                found[name.replace(old or "", f"linear_{part}")] = each
            found |= {} if old else {name: each}
        return found

    change(tmp_path / "mm", split)
    with pytest.raises(InputError, match=r"up projections of latent attention that are split, .*--mla-mm-split"):
        run_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")


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


@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("pp", [1, 2])
def test_fused_down_projections_are_read(pp, is_cut, tmp_path):
    """As Megatron-core holds them with `mla_down_proj_fusion`, the norm in front as a part of them."""
    tensors = write_model(tmp_path / "hf", "deepseek_v3")
    made = {"layout__tp": 2, "layout__pp": pp, "layout__ep": 2, "dialect": "mcore_te"}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), **made)
    paths = list((tmp_path / "mm").rglob("*.pt"))
    for path in paths:
        content = torch.load(path, weights_only=True)
        content["model"] = fused(content["model"], int(path.parent.name[8:10]) if is_cut else None)
        torch.save(content, path)
    outcome = outcome_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")
    assert (outcome.report["source_layout"]["tp"], outcome.report["source_names"]["dialect"]) == (2, "mcore_te")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], each) for name, each in tensors.items())


def test_fused_down_projections_of_other_sizes_are_refused(tmp_path):
    write_model(tmp_path / "hf", "deepseek_v3")
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "mm"), dialect="mcore_te", layout__tp=2)
    for path in (tmp_path / "mm").rglob("*.pt"):
        content = torch.load(path, weights_only=True)
        content["model"] = {
            name: tensor[:-1].clone() if "qkv_down" in name and "norm" not in name else tensor
            for name, tensor in fused(content["model"], None).items()
        }
        torch.save(content, path)
    with pytest.raises(InputError) as caught:
        run_here(source=str(tmp_path / "mm"), target=str(tmp_path / "back"), target_format="hf")
    assert len(caught.value.problems) == 2 * (LAYERS + 1)
    assert "linear_qkv_down_proj.weight has shape [43, 32], expected 24 + 20 rows" in caught.value.problems[0]


def fused(model: Mapping[str, torch.Tensor], tp_rank: int | None) -> dict[str, torch.Tensor]:
    """The tensors of a rank of two with fused down projections: its parts of both where it is given, or all of both."""
    found = dict(model)
    for name in model:
        if name.endswith("linear_q_down_proj.weight"):
            at = name.removesuffix("linear_q_down_proj.weight")
            parts = [found.pop(name), found.pop(f"{at}linear_kv_down_proj.weight")]
            if tp_rank is not None:
                parts = [part.chunk(2)[tp_rank] for part in parts]
            found[f"{at}linear_qkv_down_proj.weight"] = torch.cat(parts)
            norm = found.pop(f"{at.removesuffix('self_attention.')}input_layernorm.weight")
            found[f"{at}linear_qkv_down_proj.layer_norm_weight"] = norm
    return found


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
