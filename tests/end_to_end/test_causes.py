"""What training saved in a form that cannot be converted: the cause is named, and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distconv.errors import InputError
from tests.checkpoints import forget, load_case, write_source
from tests.here import outcome_here, run_here

CASE = load_case("qwen3vl_moe__tp2_pp1")
EXPERT = re.compile(r"(.*\.experts\.)local_experts\.(\d+)\.(linear_fc[12])\.weight")
Model = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The model, and what training saves of it, without and with tensor and expert parallelism."""
    world = tmp_path_factory.mktemp("trained")
    source = str(write_source(world / "hf", CASE))
    run_here(source=source, target=str(world / "whole"))
    run_here(source=source, target=str(world / "tp2"), layout__tp=2)
    run_here(source=source, target=str(world / "ep2"), layout__ep=2)
    return world


def saved_as(trained: Path, name: str, directory: Path, change: Callable[[Model], Model]) -> str:
    """The problems of a checkpoint whose files are changed."""
    changed_in(trained, name, directory, change)
    return refusal(trained, directory / name)


def changed_in(trained: Path, name: str, directory: Path, change: Callable[[Model], Model]) -> None:
    """Copy a checkpoint into a directory, with changed files."""
    shutil.copytree(trained / name, directory / name)
    for path in (directory / name).rglob("*.pt"):
        content: dict[str, Any] = torch.load(path, weights_only=True)
        path.unlink()
        torch.save({**content, "model": change(content["model"])}, path)
    forget(directory / name)


def refusal(trained: Path, source: Path, **options: Any) -> str:
    reference, target = str(trained / "hf"), str(source.parent / "back")
    with pytest.raises(InputError) as caught:
        run_here(source=str(source), reference=reference, target=target, target_format="hf", **options)
    return "\n".join(caught.value.problems)


def experts_as(names: Model, per_expert: Callable[[re.Match[str]], str]) -> Model:
    return {per_expert(found) if (found := EXPERT.fullmatch(name)) else name: each for name, each in names.items()}


def test_experts_that_tensor_parallelism_does_not_cut(trained, tmp_path):
    (path,) = (trained / "whole").rglob("*.pt")
    whole = torch.load(path, weights_only=True)["model"]
    changed_in(
        trained,
        "tp2",
        tmp_path,
        lambda model: {name: whole[name] if EXPERT.fullmatch(name) else each for name, each in model.items()},
    )
    options = {"reference": str(trained / "hf"), "target_format": "hf"}
    outcome = outcome_here(source=str(tmp_path / "tp2"), target=str(tmp_path / "back"), **options)
    assert (outcome.report["source_layout"]["tp"], outcome.report["source_layout"]["expert_tp"]) == (2, 1)
    assert tensors_in(tmp_path / "back") == tensors_in(trained / "hf")
    problem = refusal(trained, tmp_path / "tp2", source_layout__expert_tp=2)
    assert problem == (
        f"source_layout.expert_tp=2: the experts in {tmp_path}/tp2/release are cut into 1 pieces; leave it out"
    )


def tensors_in(directory: Path) -> dict[str, tuple[torch.dtype, list[Any]]]:
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= {name: (each.dtype, each.view(torch.int16).tolist()) for name, each in load_file(path).items()}
    return found


def grouped_matrices(model: Model) -> Model:
    """The experts of a layer in two tensors, as Megatron-core's grouped matrix products hold them."""
    others = {name: each for name, each in model.items() if not EXPERT.fullmatch(name)}
    groups: dict[tuple[str, str], list[torch.Tensor]] = {}
    for name, each in model.items():
        if found := EXPERT.fullmatch(name):
            groups.setdefault((found[1], found[3]), []).append(each.t())
    for (module, part), matrices in groups.items():
        rows = matrices[0].shape[0] if part == "linear_fc1" else sum(each.shape[0] for each in matrices)
        others[f"{module}weight{part[-1]}"] = torch.stack(matrices).reshape(rows, -1)
    return others


@pytest.mark.parametrize("name", ["whole", "ep2", "tp2"])
def test_grouped_experts(name, trained, tmp_path):
    changed_in(trained, name, tmp_path, grouped_matrices)
    reference = str(trained / "hf")
    outcome = outcome_here(
        source=str(tmp_path / name), reference=reference, target=str(tmp_path / "back"), target_format="hf"
    )
    assert outcome.report["source_names"]["dialect"] == "mindspeed_mm_grouped"
    assert tensors_in(tmp_path / "back") == tensors_in(trained / "hf")


@pytest.mark.parametrize("name", ["whole", "ep2", "tp2"])
def test_grouped_experts_of_another_shape(name, trained, tmp_path):
    problem = saved_as(
        trained, name, tmp_path, lambda model: experts_as(model, lambda found: f"{found[1]}weight{found[3][-1]}")
    )
    for line in problem.splitlines():
        assert re.fullmatch(r".*experts\.weight[12] has shape \[(\d+), (\d+)\], expected \[\2, \1\], dim [01] .*", line)


@pytest.mark.parametrize("name", ["whole", "ep2", "tp2"])
def test_experts_of_transformer_engine_beside_norms_of_the_local_spec(name, trained, tmp_path):
    problem = saved_as(
        trained,
        name,
        tmp_path,
        lambda model: experts_as(model, lambda found: f"{found[1]}{found[3]}.weight{found[2]}"),
    )
    assert problem.startswith(f"{tmp_path}/{name}/release: ")
    assert "of grouped experts, such as text_decoder.decoder.layers." in problem
    assert "without --moe-grouped-gemm" in problem
    assert len(problem.splitlines()) == 1


def test_names_of_a_wrapped_model(trained, tmp_path):
    problem = saved_as(trained, "tp2", tmp_path, lambda model: {f"module.{name}": each for name, each in model.items()})
    assert problem.startswith(f"{tmp_path}/tp2/release: module. is in front of the names of ")
    assert len(problem.splitlines()) == 1


def test_tensor_parallel_ranks_that_are_missing(trained, tmp_path):
    shutil.copytree(trained / "tp2", tmp_path / "tp2")
    shutil.rmtree(tmp_path / "tp2" / "release" / "mp_rank_01")
    assert refusal(trained, tmp_path / "tp2").splitlines() == [
        f"{tmp_path}/tp2/release: has 1 tensor parallel rank, but its {modality} tensors are pieces of 2: the "
        "directories of the others are missing"
        for modality in ("text", "vision")
    ]
