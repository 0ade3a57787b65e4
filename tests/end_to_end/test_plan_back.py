"""What `action=plan` says of a checkpoint that training had: what it was found to be, and what becomes of it."""

from __future__ import annotations

import json

import pytest

from tests.checkpoints import load_case, overrides, write_source
from tests.here import run_here

CASE = load_case("qwen2vl__tp2_pp2")
DCP = {"target_format": "dcp", "naming": "hf", "name_prefix": "module."}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    source = str(write_source(root / "hf", CASE))
    run_here(*overrides(CASE), source=source, target=str(root / "mm"), iteration=10)
    run_here(source=source, target=str(root / "dcp"), **DCP)
    return root


@pytest.mark.parametrize(
    ("source", "options", "lines"),
    [
        pytest.param(
            "mm",
            ["target_format=hf"],
            [
                "follows  {root}/hf",
                "target   back",
                "hf       142 tensors in 5 files",
                "  model-00001-of-00005.safetensors  92.7 KiB",
            ],
            id="Megatron to Hugging Face",
        ),
        pytest.param(
            "mm",
            ["layout.pp=3"],
            [
                "target   back/iter_0000010",
                "layout   tp=1 pp=3 vpp=1 ep=1",
                "stages   text=[0,3,3]",
            ],
            id="Megatron to another layout",
        ),
        pytest.param(
            "dcp",
            ["target_format=hf"],
            ["found    hf names with the prefix model.module., dialect published", "hf       142 tensors in 5 files"],
            id="DCP to Hugging Face",
        ),
    ],
)
def test_the_plan_says_what_was_found_and_what_will_be(
    source, options, lines, sources, tmp_path, monkeypatch, distconv
):
    monkeypatch.chdir(tmp_path)
    outcome = distconv(f"source={sources / source}", "target=back", "action=plan", "report=plan.json", *options)

    assert outcome.status == 0, outcome.err
    said = outcome.out.splitlines()
    assert [line for line in lines if line.format(root=sources) not in said] == [], outcome.out
    assert "not carried over" not in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["source_format"] == ("megatron" if source == "mm" else "dcp")
    assert report["source_names"]["dialect"] == ("mindspeed_mm" if source == "mm" else "published")
