"""Results are cut as the training side cuts its model, and not into stages that it cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import describe_result, load_case, overrides, write_source

GLM = load_case("glm4_1v__tp1_pp1")
BLOCK = "image_encoder.encoder.blocks.layers"


@pytest.fixture
def glm(tmp_path):
    return write_source(tmp_path / "hf", GLM, single_file=True)


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Elements of 16 bits as integers: random ones are not always numbers, nor equal to themselves."""
    return {name: tensor.contiguous().view(torch.int16) for name, tensor in tensors.items()}


def published(directory: Path) -> dict[str, torch.Tensor]:
    return bits(load_file(directory / "model.safetensors"))


def test_at_tp_2_the_vision_mlp_of_glm_is_cut_and_the_rest_of_its_tower_is_whole(glm, tmp_path, distconv):
    assert distconv(f"source={glm}", f"target={tmp_path / 'mm'}", "layout.tp=2").status == 0
    ranks = [
        bits(torch.load(tmp_path / f"mm/release/mp_rank_0{rank}/model_optim_rng.pt", weights_only=True)["model"])
        for rank in range(2)
    ]
    original = published(glm)
    cut = set()
    for layer in range(5):
        gate, up, down = (
            original[f"model.visual.blocks.{layer}.mlp.{each}_proj.weight"] for each in ("gate", "up", "down")
        )
        names = [f"{BLOCK}.{layer}.mlp.{linear}.weight" for linear in ("linear_fc1", "linear_fc2")]
        for rank, held in enumerate(ranks):
            assert torch.equal(held[names[0]], torch.cat([gate.chunk(2)[rank], up.chunk(2)[rank]]))
            assert torch.equal(held[names[1]], down.chunk(2, dim=1)[rank])
        cut |= set(names)
    whole = GLM["files"]["release/mp_rank_00/model_optim_rng.pt"]["model"]
    for name in whole.keys() - cut:
        if name.startswith("image_encoder."):
            assert torch.equal(ranks[0][name], ranks[1][name]), name
            assert list(ranks[0][name].shape) == whole[name][1], name


def test_glm_comes_back_from_tp_2_to_published_names_and_to_other_layouts(glm, tmp_path, distconv):
    assert distconv(f"source={glm}", f"target={tmp_path / 'tp2'}", "layout.tp=2").status == 0
    assert distconv("target_format=hf", f"source={tmp_path / 'tp2'}", f"target={tmp_path / 'back'}").status == 0
    original, returned = published(glm), published(tmp_path / "back")
    assert original.keys() == returned.keys()
    assert [name for name, tensor in original.items() if not torch.equal(tensor, returned[name])] == []
    for name in ("glm4_1v__tp1_pp1", "glm4_1v__tp1_pp4"):
        case = load_case(name)
        assert distconv(*overrides(case), f"source={tmp_path / 'tp2'}", f"target={tmp_path / name}").status == 0
        assert describe_result(tmp_path / name) == case["files"]
    again = [f"source={tmp_path / 'glm4_1v__tp1_pp4'}", f"target={tmp_path / 'again'}", "layout.tp=2"]
    assert distconv(*again).status == 0
    assert describe_result(tmp_path / "again") == describe_result(tmp_path / "tp2")


def refused(outcome, target, *says):
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert not target.exists()
    for each in (*says, "layout.check=false"):
        assert each in outcome.err


def notes(distconv, tmp_path, *arguments):
    assert distconv(*arguments, f"report={tmp_path / 'report.json'}").status == 0
    return json.loads((tmp_path / "report.json").read_text())["notes"]


def test_a_vision_tower_of_glm_over_several_stages_is_refused_as_a_result_and_read_as_a_source(glm, tmp_path, distconv):
    cut = [f"source={glm}", f"target={tmp_path / 'mm'}", "layout.stages.text=[2,4]", "layout.stages.vision=[3,2]"]
    says = ["layout.stages.vision=[3,2]: has vision layers on 2 stages, expected 1: ", "downsample"]
    for action in ("convert", "plan", "verify"):
        refused(distconv(*cut, f"action={action}"), tmp_path / "mm", *says)
    noted = notes(distconv, tmp_path, *cut, "layout.check=false")
    assert ["on 2 stages, expected 1" in noted[0], "not known to run this" in noted[1]] == [True, True]
    case = load_case("glm4_1v__tp1_pp2")
    assert distconv(*overrides(case), f"source={tmp_path / 'mm'}", f"target={tmp_path / 'again'}").status == 0
    assert describe_result(tmp_path / "again") == case["files"]
    assert distconv(f"source={tmp_path / 'mm'}", f"target={tmp_path / 'hf2'}", "target_format=hf").status == 0
    assert published(tmp_path / "hf2").keys() == published(glm).keys()


def test_a_vision_tower_of_deepseek_over_several_stages_is_refused(tmp_path, distconv):
    source = f"source={write_source(tmp_path / 'hf', load_case('deepseekvl2__tp1_pp1'))}"
    cut = [source, f"target={tmp_path / 'mm'}", "layout.stages.text=[2,4]", "layout.stages.vision=[3,2]"]
    says = "layout.stages.vision=[3,2]: has vision layers on 2 stages, expected 1: the training side builds its whole"
    refused(distconv(*cut), tmp_path / "mm", says)
    assert distconv(*cut[:3], "layout.stages.vision=[5,0]").status == 0


@pytest.mark.parametrize("model", ["qwen3vl", "qwen3vl_moe"])
def test_deepstack_features_keep_the_first_text_layers_on_the_first_stage(model, tmp_path, distconv):
    case = load_case(f"{model}__tp1_pp1")
    source = f"source={write_source(tmp_path / 'hf', case)}"
    for stages in ("[2,4]", "[0,6]", "[[2,1],[2,1]]"):
        vision = "[[5,0],[0,0]]" if stages.startswith("[[") else "[5,0]"
        lists = [f"layout.stages.text={stages}", f"layout.stages.vision={vision}"]
        has = f"layout.stages.text={stages}: has {stages.strip('[')[0]} text layers on the first stage"
        outcome = distconv(source, f"target={tmp_path / 'mm'}", *lists)
        refused(outcome, tmp_path / "mm", f"{has}, expected at least 3 (deepstack): ")
    # Whole tensors have no stages.
    assert distconv(source, f"target={tmp_path / 'dcp'}", "target_format=dcp", "naming=megatron").status == 0
    report = tmp_path / "report.json"
    for sizes in (["layout.pp=4"], ["layout.pp=2", "layout.vpp=2"], ["layout.pp=6"]):
        assert distconv("action=plan", source, f"target={tmp_path / 'mm'}", *sizes, f"report={report}").status == 0
        assert json.loads(report.read_text())["layout"]["stages"]["text"][0][0] >= 3


def test_a_source_that_trains_on_wrong_values_is_read_and_may_become_another_layout(tmp_path, distconv):
    case = load_case("qwen3vl__tp2_pp2")
    source = f"source={write_source(tmp_path / 'hf', case)}"
    assert (
        "layout.stages.text=[2,4]"
        in notes(distconv, tmp_path, *overrides(case), source, f"target={tmp_path / 'mm'}")[0]
    )
    again = [f"source={tmp_path / 'mm'}", f"target={tmp_path / 'pp1'}"]
    assert notes(distconv, tmp_path, *again) == []
    assert describe_result(tmp_path / "pp1") == load_case("qwen3vl__tp1_pp1")["files"]
    back = [f"source={tmp_path / 'mm'}", f"target={tmp_path / 'back'}", "target_format=hf"]
    assert distconv(*back).status == 0


def test_encoders_after_the_beginning_of_the_text_are_noted_and_after_its_end_refused(tmp_path, distconv):
    case = load_case("qwen2vl__tp1_pp2_vit_split")
    arguments = [f"source={write_source(tmp_path / 'hf', case)}", f"target={tmp_path / 'mm'}"]
    outcome = distconv(*arguments, *overrides(case), "action=plan")
    words = " ".join(outcome.out.split())
    assert "note: layout.stages.vision=[3,2]: has vision layers on pipeline rank 1, after pipeline rank 0" in words
    late = ["layout.stages.text=[6,0]", "layout.stages.vision=[3,2]"]
    refused(distconv(*arguments, *late), tmp_path / "mm", "layout.stages.vision=[3,2]", "no text layer would get")
    assert len(notes(distconv, tmp_path, *arguments, *late, "layout.check=false")) == 1
