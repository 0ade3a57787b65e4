"""torch_dist checkpoints in all forms that Megatron-core has for them, of models of which there is no sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distconv import inspect
from distconv.cli.show import inspection_text
from distconv.formats.dcp.metadata import read_metadata
from tests.end_to_end.test_language_models import CONFIGS, DENSE, write_model
from tests.golden.samples import TRAINED, reference, unpacked
from tests.here import outcome_here, run_here
from tests.torch_dist_files import APART, SINGLETONS, STACKED, write_torch_dist

# Their first layer is dense.
MIXED = ("deepseek_v3", "glm4_moe", "qwen3_moe")


def saved(directory: Path, family: str, form: str, **options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of a model, and the tensors of that."""
    tensors = write_model(directory / "hf", family)
    run_here(source=str(directory / "hf"), target=str(directory / "mm"), dialect="mcore_local")
    path = directory / "mm" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    model = torch.load(path, weights_only=True)["model"]
    return write_torch_dist(directory / "td", model, form, **options), tensors


@pytest.mark.parametrize("te", [False, True], ids=["local", "te"])
@pytest.mark.parametrize(
    ("family", "form"),
    [
        (family, form)
        for family in CONFIGS
        for form in (STACKED, APART, SINGLETONS)
        if family not in MIXED or form != STACKED
    ],
)
def test_every_form_is_the_model(family, form, te, tmp_path):
    """The layer that predicts one more token, experts with biases, and multi-head latent attention among them."""
    source, tensors = saved(tmp_path, family, form, te=te)
    outcome = outcome_here(
        source=str(source), reference=str(tmp_path / "hf"), target=str(tmp_path / "back"), target_format="hf"
    )
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, each in tensors.items():
        assert torch.equal(back[name], each), name
    told = None if family in DENSE else "Transformer Engine" if te else "local"
    assert outcome.report["source_names"]["spec"] == told


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_prefixes_of_nemo_are_taken_off(prefix, tmp_path):
    source, tensors = saved(tmp_path, "glm4_moe", APART, prefix=prefix)
    options = {"source": str(source), "reference": str(tmp_path / "hf")}
    outcome = outcome_here(**options, target=str(tmp_path / "back"), target_format="hf")
    assert outcome.report["source_names"]["prefix"] == prefix
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], each) for name, each in tensors.items())


@pytest.mark.parametrize(
    ("wrapper", "dialect"),
    [
        ("language_model.", None),
        ("language_model.", "bridge"),
        ("text_decoder.", None),
        ("text_decoder.", "mindspeed_mm_te"),
        ("", "mcore_te"),
        ("", "mcore_grouped"),
        ("", "mcore_local_0_17"),
    ],
)
def test_a_dialect_tells_nothing_but_the_wrapper(wrapper, dialect, tmp_path):
    source, tensors = saved(tmp_path, "glm4_moe", APART, te=True, prefix=wrapper)
    options = {"source": str(source), "reference": str(tmp_path / "hf"), "source_dialect": dialect}
    outcome = outcome_here(**options, target=str(tmp_path / "back"), target_format="hf")
    modules = outcome.report["source_names"]["modules"]
    assert modules == ([wrapper[:-1]] if wrapper else ["decoder", "embedding", "mtp", "output_layer"])
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], each) for name, each in tensors.items())


def test_plans_say_what_was_found(tmp_path, distconv):
    source, config = unpacked("te_q3moe_19_ep2", "td", tmp_path), reference("te_q3moe_19_ep2", tmp_path)
    outcome = distconv(
        "action=plan", f"source={source}", f"reference={config}", "target=nothing", "target_format=hf", "processes=2"
    )
    assert outcome.status == 0, outcome.err
    assert (
        "found    keys of decoder, embedding, output_layer\n         built from the Transformer Engine spec\n"
        in outcome.out
    )
    assert "extra states of modules: 27 entries" in outcome.out
    assert not (tmp_path / "nothing").exists()


def test_a_directory_is_described(tmp_path):
    source, config = unpacked(TRAINED, "td", tmp_path), reference(TRAINED, tmp_path)
    report = inspect(source, reference=config)
    assert report["problems"] == []
    assert (report["source_format"], report["iteration"], report["model"]) == ("torch_dist", "7", "qwen2vl")
    text = inspection_text(report, tensors=False)
    assert "found    keys of image_encoder, text_decoder\n" in text
    # By their kind, however many there are.
    for kind in ("extra states of modules: 34", "state of the optimizer: 58", "states of random generators: 2"):
        assert kind in " ".join(text.split())


def keys_of_experts(layer: str) -> set[str]:
    """The keys of four experts in one layer: a tensor and four states of each linear."""
    linears = [f"{layer}mlp.experts.experts.linear_fc{number}" for number in (1, 2)]
    states = {f"{each}._extra_state/shard_{expert}_4" for each in linears for expert in range(4)}
    return states | {f"{each}.weight" for each in linears}


def test_a_layer_that_predicts_has_the_keys_that_training_asks_for(tmp_path):
    """Those of `sharded_state_dict` of a GPTModel in megatron-core 0.16.1, and 0.19.2, with the local spec."""
    write_model(tmp_path / "hf", "glm4_moe")
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "td"), target_format="torch_dist")
    metadata = read_metadata(tmp_path / "td" / "release" / ".metadata")
    layer = "mtp.layers.0.transformer_layer."
    linears = ["self_attention.linear_qkv", "self_attention.linear_proj"]
    linears += [f"mlp.shared_experts.linear_fc{number}" for number in (1, 2)]
    expected = keys_of_experts(layer)
    expected |= {f"{layer}{each}.weight" for each in linears}
    expected |= {f"{layer}{each}._extra_state/shard_0_1" for each in linears}
    expected |= {f"{layer}{each}" for each in ("mlp.router.weight", "mlp.router.expert_bias")}
    expected |= {f"{layer}{each}.layer_norm_weight" for each in ("self_attention.linear_qkv", "mlp.linear_fc1")}
    expected |= {f"mtp.layers.0.{each}.weight" for each in ("enorm", "hnorm", "eh_proj", "final_layernorm")}
    expected |= {f"{layer}self_attention.linear_qkv.bias", "mtp.layers.0.eh_proj._extra_state/shard_0_1"}
    assert {key for key in (*metadata.tensors, *metadata.blobs) if key.startswith("mtp.")} == expected


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dialect", ["mcore_local", "mcore_te", "mcore_grouped", "bridge", "mindspeed_llm"])
def test_every_model_comes_back_from_every_dialect(family, dialect, tmp_path):
    tensors = write_model(tmp_path / "hf", family)
    made = {"target_format": "torch_dist", "dialect": dialect}
    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "td"), **made)
    run_here(source=str(tmp_path / "td"), target=str(tmp_path / "back"), target_format="hf")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], each) for name, each in tensors.items())
