"""LoRA adapters of language models: into training and back to the byte, and merged into their base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distconv.errors import InputError
from tests.checkpoints import forget
from tests.end_to_end.test_language_models import CONFIGS, HIDDEN, LAYERS, write_model
from tests.here import run_here

RANK, ALPHA = 2, 6
_LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn\.\w*proj\w*|mlp\.(shared_experts\.)?\w+_proj)\.weight")


def write_adapter(directory: Path, base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write adapters, as PEFT saves them, of all linears in the layers of a model but those of experts."""
    factors, first = {}, 0
    names = [name for name in base if _LINEAR.fullmatch(name) and f".{LAYERS}." not in name]
    for name in names:
        rows, columns = base[name].shape
        stem = "base_model.model." + name.removesuffix(".weight")
        for factor, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            count = shape[0] * shape[1]
            values = torch.arange(first, first + count, dtype=torch.float32) / 512
            factors[f"{stem}.lora_{factor}.weight"] = values.reshape(shape)
            first += count
    directory.mkdir()
    save_file(factors, directory / "adapter_model.safetensors")
    modules = sorted({name.split(".")[-2] for name in names})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": modules}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return factors


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert torch.equal(found[name], each), name


@pytest.mark.parametrize(
    ("family", "through"),
    [
        *((family, "megatron") for family in CONFIGS),
        *((family, through) for family in ("qwen3_moe", "deepseek_v3") for through in ("mcore_te", "dcp")),
    ],
)
def test_adapters_come_back_and_merge(family, through, tmp_path):
    base = write_model(tmp_path / "base", family)
    factors = write_adapter(tmp_path / "peft", base)
    assert len({name.split(".")[-3] for name in factors}) >= 4
    cut = {"layout__tp": 2, "layout__stages__text": [[1, LAYERS - 1]]}
    made: dict[str, Any] = {
        "megatron": cut,
        "mcore_te": cut | {"dialect": "mcore_te"},
        "dcp": {"target_format": "dcp"},
    }[through]
    model = f"+model={family}_lora"
    run_here(model, source=str(tmp_path / "peft"), target=str(tmp_path / "mm"), **made)

    back = {"source": str(tmp_path / "mm"), "target_format": "hf"}
    if through != "dcp":
        # Without the sizes of the base nothing tells whether both ranks hold the same rows.
        said = {"source_dialect": made.get("dialect", "mcore_local")} if family == "deepseek_v3" else {}
        run_here(model, **back, **said, reference=str(tmp_path / "peft"), target=str(tmp_path / "as_they_were"))
        same(load_file(tmp_path / "as_they_were" / "adapter_model.safetensors"), factors)
    run_here(model, **back, reference=str(tmp_path / "base"), target=str(tmp_path / "of_base"))
    same(load_file(tmp_path / "of_base" / "adapter_model.safetensors"), factors)

    merged = {"reference": str(tmp_path / "base"), "merge_lora": True, "target": str(tmp_path / "merged")}
    run_here(model, **back, **merged)
    expected = dict(base)
    for name in base:
        stem = "base_model.model." + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in factors:
            product = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]
            expected[name] = base[name] + ALPHA / RANK * product
    same(load_file(tmp_path / "merged" / "model.safetensors"), expected)


def test_adapters_are_cut_as_what_they_adapt(tmp_path):
    factors = write_adapter(tmp_path / "peft", write_model(tmp_path / "base", "qwen3"))
    cut = {"layout__tp": 2, "layout__pp": 1, "layout__stages__text": [[LAYERS]]}
    run_here("+model=qwen3_lora", source=str(tmp_path / "peft"), target=str(tmp_path / "mm"), **cut)
    path = tmp_path / "mm" / "release" / "mp_rank_01" / "model_optim_rng.pt"
    held = torch.load(path, weights_only=True)["model"]
    published, own = "base_model.model.model.layers.2", "decoder.layers.2"
    modules = {
        "self_attn.q_proj": "self_attention.q_proj", "self_attn.k_proj": "self_attention.k_proj",
        "self_attn.v_proj": "self_attention.v_proj", "self_attn.o_proj": "self_attention.linear_proj",
        "mlp.gate_proj": "mlp.gate_proj", "mlp.up_proj": "mlp.up_proj", "mlp.down_proj": "mlp.linear_fc2",
    }  # fmt: skip
    assert {name for name in held if name.startswith(own)} == {
        f"{own}.{each}.lora_{factor}.default.weight" for each in modules.values() for factor in "AB"
    }
    for name, target in modules.items():
        a, b = (factors[f"{published}.{name}.lora_{factor}.weight"] for factor in "AB")
        by_columns = name.endswith(("o_proj", "down_proj"))
        assert torch.equal(held[f"{own}.{target}.lora_A.default.weight"], a.chunk(2, 1)[1] if by_columns else a)
        assert torch.equal(held[f"{own}.{target}.lora_B.default.weight"], b if by_columns else b.chunk(2)[1])


def test_latent_attention_has_adapters_on_its_own_linears(tmp_path):
    write_adapter(tmp_path / "peft", write_model(tmp_path / "base", "deepseek_v3"))
    cut = {"layout__tp": 2, "layout__stages__text": [[1, LAYERS - 1]]}
    run_here("+model=deepseek_v3_lora", source=str(tmp_path / "peft"), target=str(tmp_path / "mm"), **cut)
    path = tmp_path / "mm" / "release" / "mp_rank_00_001" / "model_optim_rng.pt"
    held = torch.load(path, weights_only=True)["model"]
    linears = {name.removeprefix("decoder.layers.0.").partition(".lora_")[0] for name in held if ".layers.0." in name}
    attention = ("linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj", "linear_proj")
    shared = ("gate_proj", "up_proj", "linear_fc2")
    assert linears == {f"self_attention.{each}" for each in attention} | {
        f"mlp.shared_experts.{each}" for each in shared
    }
    assert held["decoder.layers.0.self_attention.linear_q_up_proj.lora_B.default.weight"].shape == (24, RANK)


@pytest.mark.parametrize("dialect", ["mcore_local", "mcore_te"])
def test_whether_down_projections_are_whole_is_asked_for_where_nothing_tells_it(dialect, tmp_path):
    factors = write_adapter(tmp_path / "peft", write_model(tmp_path / "base", "deepseek_v3"))
    cut = {"layout__tp": 2, "layout__stages__text": [[LAYERS]], "dialect": dialect}
    run_here("+model=deepseek_v3_lora", source=str(tmp_path / "peft"), target=str(tmp_path / "mm"), **cut)
    back = {"source": str(tmp_path / "mm"), "target_format": "hf", "target": str(tmp_path / "back")}
    # The record tells it.
    run_here("+model=deepseek_v3_lora", **{**back, "target": str(tmp_path / "told")})
    same(load_file(tmp_path / "told" / "adapter_model.safetensors"), factors)
    forget(tmp_path / "mm")
    with pytest.raises(InputError, match=r"linear_q_down_proj.* cut or whole .*; give source_dialect, or a reference"):
        run_here("+model=deepseek_v3_lora", **back, reference=str(tmp_path / "peft"))
    run_here("+model=deepseek_v3_lora", **back, reference=str(tmp_path / "peft"), source_dialect=dialect)
    same(load_file(tmp_path / "back" / "adapter_model.safetensors"), factors)


@pytest.mark.parametrize(
    "module", ["model.layers.1.mlp.experts.3.gate_proj", "model.layers.1.block_sparse_moe.experts.3.w1", "lm_head"]
)
def test_adapters_on_what_has_none_are_refused(module, tmp_path):
    factors = write_adapter(tmp_path / "peft", write_model(tmp_path / "base", "mixtral"))
    others = {"A": torch.ones(RANK, HIDDEN), "B": torch.ones(16, RANK)}
    factors |= {f"base_model.model.{module}.lora_{factor}.weight": each for factor, each in others.items()}
    save_file(factors, tmp_path / "peft" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    settings["target_modules"].append(module.rpartition(".")[2])
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=rf"2 source tensors that no rule .*{re.escape(module)}\.lora_A"):
        run_here("+model=mixtral_lora", source=str(tmp_path / "peft"), target=str(tmp_path / "mm"))
    assert not (tmp_path / "mm").exists()
