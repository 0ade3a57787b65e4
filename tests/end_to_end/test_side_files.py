"""Beside a result lies what is true of it, and nothing that was only true of its reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError
from tests.checkpoints import load_case, overrides, write_source
from tests.here import run_here

CASE = load_case("qwen2vl__tp1_pp1")
QUANTISATION = {"quant_method": "fp8", "weight_block_size": [128, 128]}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "megatron": {},
    "dcp of parameters": {"target_format": "dcp"},
    "dcp of published tensors": {"target_format": "dcp", "naming": "hf"},
}


def reference_of(tmp_path: Path, **config: Any) -> Path:
    """A reference without weights, and with what programs leave beside a model."""
    directory = tmp_path / "reference"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**CASE["hf_config"], **config}))
    for name in ("tokenizer.json", "adapter_config.json", "hf_quant_config.json", "trainer_state.json"):
        (directory / name).write_text("{}")
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_result_makes_false_stays_behind_and_the_doubtful_is_named(kind, tmp_path):
    source, trained, report = write_source(tmp_path / "hf", CASE), tmp_path / "trained", tmp_path / "report.json"
    run_here(*overrides(CASE)[:1], source=str(source), target=str(trained), **KINDS[kind])
    reference = reference_of(tmp_path, quantization_config=QUANTISATION)
    job = {"source": str(trained), "target": str(tmp_path / "back"), "target_format": "hf"}
    job |= {"reference": str(reference), "report": str(report)}

    run_here(**job)

    back = tmp_path / "back"
    assert {each.name for each in back.iterdir()} == {
        "config.json",
        "distconv.json",
        "model.safetensors",
        "tokenizer.json",
        "trainer_state.json",
    }
    assert json.loads((back / "config.json").read_text()) == CASE["hf_config"]
    assert json.loads(report.read_text())["notes"][-4:] == [
        "config.json: without its quantisation: no tensor of the result is quantised",
        "adapter_config.json: not copied: the result holds no adapters",
        "hf_quant_config.json: not copied: no tensor of the result is quantised",
        "copied from the reference, and may not be true of the result: trainer_state.json",
    ]
    run_here(**job, action="verify")


def test_the_weights_of_a_quantised_reference_fill_nothing_in(tmp_path):
    """Its scales would lie beside weights that they are not for."""
    case = {**CASE, "source_tensors": dict(CASE["source_tensors"])}
    name = next(each for each in case["source_tensors"] if each.endswith("q_proj.weight"))
    dtype, shape, shard = case["source_tensors"][name]
    case["source_tensors"][name] = ["float8_e4m3fn", shape, shard]
    case["source_tensors"][f"{name}_scale_inv"] = [dtype, [1, 1], shard]
    trained = tmp_path / "trained"
    run_here(*overrides(CASE)[:1], source=str(write_source(tmp_path / "hf", CASE)), target=str(trained))
    with pytest.raises(InputError, match=r"filled from reference=.*q_proj.weight_scale_inv"):
        run_here(
            source=str(trained),
            target=str(tmp_path / "back"),
            target_format="hf",
            reference=str(write_source(tmp_path / "fp8", case)),
            fill_from_reference=True,
        )
    assert not (tmp_path / "back").exists()
