"""What comes back from training loads in transformers, with no key too many or too few, and computes the same."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import assert_same_bits

from tests.here import run_here

HERE = Path(__file__).parent
FILE = "model_optim_rng.pt"
TP2_PP2 = {"layout__tp": 2, "layout__stages__text": [1, 3], "layout__stages__vision": [3, 1]}
ONE_TOWER = {**TP2_PP2, "layout__stages__vision": [4, 0]}
WITH_AUDIO = {**TP2_PP2, "layout__stages__audio": [1, 2]}
# with as many text layers on the first stage as there are deepstack layers
DEEPSTACK = {**TP2_PP2, "layout__stages__text": [3, 1]}
WITH_EXPERTS = {**DEEPSTACK, "layout__ep": 2}
OF_THREE_LAYERS = {**TP2_PP2, "layout__stages__text": [2, 1]}
# each model, of the fixture that has it, with a layout that divides it
MODELS: dict[str, Mapping[str, Any]] = {
    "sources/untied": TP2_PP2,
    "sources/tied": TP2_PP2,
    "families/qwen2_5vl": TP2_PP2,
    "families/qwen2_5vl_tied": TP2_PP2,
    "families/qwen2_5omni": WITH_AUDIO,
    "families/qwen2_5omni_thinker": WITH_AUDIO,
    "families/qwen2_5omni_thinker_tied": WITH_AUDIO,
    "families/qwen3vl": DEEPSTACK,
    "families/qwen3vl_tied": DEEPSTACK,
    "families/qwen3vl_moe": WITH_EXPERTS,
    "families/internvl_hf": TP2_PP2,
    "families/internvl_hf_small": TP2_PP2,
    "families/glm4_1v": ONE_TOWER,
    "live_sources/untied": OF_THREE_LAYERS,
    "live_sources/tied": OF_THREE_LAYERS,
    "live_sources/moe": {**OF_THREE_LAYERS, "layout__ep": 2},
}
# bfloat16 when published, float32 when training saved them
IN_FLOAT32 = ["families/qwen2_5vl_tied", "families/qwen3vl_moe"]
# models of which training has a part only
WITH_SPEECH = ["families/qwen2_5omni"]
# each model that is trained with FSDP2, and the prefix that is given where its names are wrapped; others are found
FSDP2 = {"sources/untied": "model._orig_mod.module.", "live_sources/tied": None, "live_sources/moe": "model.module."}


@dataclass(frozen=True)
class Loaded:
    """The directory of a checkpoint, and what `published_client.py` says of it."""

    directory: Path
    unfit: list[str]
    state: dict[str, torch.Tensor]
    logits: torch.Tensor


Load = Callable[[Mapping[str, Path]], dict[str, Loaded]]


@pytest.fixture(scope="module")
def originals(sources: Path, families: Path, live_sources: Path) -> Mapping[str, Path]:
    directories = {"sources": sources, "families": families, "live_sources": live_sources}
    return {name: directories[name.split("/")[0]] / name.split("/")[1] for name in MODELS}


@pytest.fixture(scope="module")
def load(
    originals: Mapping[str, Path], run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Load:
    """Load checkpoints, and let each compute from the inputs of its model, whose name its own begins with."""
    directory = tmp_path_factory.mktemp("loaded")

    def run(checkpoints: Mapping[str, Path]) -> dict[str, Loaded]:
        jobs: dict[str, dict[str, str]] = {}
        for number, (name, checkpoint) in enumerate(checkpoints.items()):
            inputs = inputs_of(name.partition(" ")[0], originals)
            jobs[name] = {"checkpoint": str(checkpoint), "inputs": inputs, "output": str(directory / f"{number}.pt")}
        (directory / "jobs.json").write_text(json.dumps(list(jobs.values())))
        run_program(HERE / "published_client.py", directory / "jobs.json")
        return {
            name: Loaded(checkpoints[name], **torch.load(job["output"], weights_only=True))
            for name, job in jobs.items()
        }

    return run


@pytest.fixture(scope="module")
def came_back(originals: Mapping[str, Path], load: Load, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """Each model; converted and back (`NAME back`); and the same after training has saved it (`NAME trained`)."""
    checkpoints = {}
    for name, layout in MODELS.items():
        original, directory = originals[name] / "hf", tmp_path_factory.mktemp("back")
        run_here(source=str(original), target=str(directory / "mm"), **layout)
        options = {"reference": str(original), "target_format": "hf", "fill_from_reference": name in WITH_SPEECH}
        run_here(source=str(directory / "mm"), target=str(directory / "hf"), **options)
        checkpoints |= {name: original, f"{name} back": directory / "hf"}
        if name in IN_FLOAT32:
            save_as_training_does(directory / "mm", directory / "trained")
            run_here(source=str(directory / "trained"), target=str(directory / "hf32"), **options)
            checkpoints[f"{name} trained"] = directory / "hf32"
    return load(checkpoints)


def save_as_training_does(converted: Path, directory: Path) -> None:
    """Iteration 10 of a training that started from a converted checkpoint, with weights in float32."""
    for path in converted.glob(f"release/*/{FILE}"):
        model: dict[str, Any] = torch.load(path, weights_only=True)["model"]
        weights = {name: weight.float() for name, weight in model.items()}
        norms = {name.replace("weight", "_extra_state"): None for name in model if name.endswith("norm.weight")}
        moments = {number: {"exp_avg": torch.zeros_like(each)} for number, each in enumerate(weights.values())}
        content = {
            "args": argparse.Namespace(iteration=10, hidden_size=48),
            "checkpoint_version": 3.0,
            "iteration": 10,
            "model": {**weights, **norms},
            "optimizer": {"optimizer": {"state": moments, "param_groups": [{"lr": 1e-5}]}},
            "opt_param_scheduler": {"num_steps": 10},
            "rng_state": [{"torch_rng_state": torch.get_rng_state()}],
        }
        target = directory / "iter_0000010" / path.parent.name
        target.mkdir(parents=True)
        torch.save(content, target / FILE)
    (directory / "latest_checkpointed_iteration.txt").write_text("10\n")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_converted_comes_back(name: str, came_back: Mapping[str, Loaded]) -> None:
    original, back = came_back[name], came_back[f"{name} back"]

    assert original.unfit == back.unfit == []
    assert_same_bits(back.state, original.state)
    assert original.logits.isfinite().all()
    assert original.logits.std() > 0.1
    assert torch.equal(back.logits, original.logits)


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_what_training_saved_in_float32_comes_back_in_float32(name: str, came_back: Mapping[str, Loaded]) -> None:
    original, back = came_back[name], came_back[f"{name} trained"]

    assert back.unfit == []
    assert {each.dtype for each in original.state.values()} == {torch.bfloat16}
    assert_same_bits(back.state, {key: each.float() for key, each in original.state.items()})
    said = [json.loads((each.directory / "config.json").read_text())["dtype"] for each in (original, back)]
    assert said == ["bfloat16", "float32"]


def test_what_fsdp2_trained_loads_and_computes_the_same(
    originals: Mapping[str, Path],
    load: Load,
    run_program: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [f"{name}={originals[name] / 'hf'}={inputs_of(name, originals)}" for name in FSDP2]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_program(*torchrun, HERE / "fsdp2_qwen.py", *jobs)
    checkpoints = {}
    for name, prefix in FSDP2.items():
        for saved in ("dcp", "wrapped"):
            assert len(list((tmp_path / name / saved).glob("*.distcp"))) == 2
            target = tmp_path / name / f"hf_{saved}"
            run_here(
                source=str(tmp_path / name / saved),
                target=str(target),
                target_format="hf",
                reference=str(originals[name] / "hf"),
                name_prefix=prefix if saved == "wrapped" else None,
            )
            checkpoints[f"{name} {saved}"] = target

    found = load({**{name: originals[name] / "hf" for name in FSDP2}, **checkpoints})

    for name in FSDP2:
        trained = torch.load(tmp_path / name / "trained.pt", weights_only=True)
        logits = torch.load(tmp_path / name / "logits.pt", weights_only=True)
        assert (found[name].logits - logits).abs().max() > 1e-2, "the step has changed nothing"
        for saved in ("dcp", "wrapped"):
            back = found[f"{name} {saved}"]
            assert back.unfit == []
            assert_same_bits(back.state, trained)
            torch.testing.assert_close(back.logits, logits, rtol=1e-4, atol=1e-5)


def inputs_of(name: str, originals: Mapping[str, Path]) -> str:
    """The inputs of a model, where images are among them."""
    return str(originals[name] / "inputs.pt") if name.startswith("live_sources/") else ""
