"""Results are cut as the training side cuts its model."""

from __future__ import annotations

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
