"""From published names to published names nothing incomplete or misshapen passes, whatever the formats are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distconv import inspect
from distconv.errors import InputError
from distconv.formats import registry
from tests.checkpoints import load_case, write_source
from tests.here import run_here
from tests.npy_format import Npy

CASE = load_case("qwen3vl_moe__tp1_pp1")
NORM = "model.language_model.norm.weight"
PACKED = next(name for name in CASE["source_tensors"] if name.endswith("experts.gate_up_proj"))
Damage = Callable[[dict[str, Any]], Any]


def shaped(name: str, change: Callable[[list[int]], list[int]]) -> Damage:
    def damage(tensors: dict[str, Any]) -> None:
        dtype, shape, shard = tensors[name]
        tensors[name] = [dtype, change(shape), shard]

    return damage


DAMAGE: dict[str, tuple[Damage, str]] = {
    "missing": (lambda tensors: tensors.pop(NORM), f"source tensor {NORM} is missing"),
    "narrower": (shaped(NORM, lambda shape: [shape[0] - 1]), f"{NORM} has shape"),
    "without elements": (shaped(NORM, lambda _: [0]), rf"{NORM} has shape \[0\]"),
    "transposed experts": (shaped(PACKED, lambda shape: [shape[0], shape[2], shape[1]]), f"{PACKED} has shape"),
}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, Npy()))


def damaged(directory: Path, damage: Damage) -> Path:
    """The model of the case in one file and without an index, with damage."""
    tensors = {name: [dtype, shape, "model.safetensors"] for name, (dtype, shape, _) in CASE["source_tensors"].items()}
    damage(tensors)
    return write_source(directory, {**CASE, "source_tensors": tensors}, single_file=True)


def as_unknown(directory: Path) -> Path:
    """A copy of a model whose type no definition is for, so that everything is taken as it is."""
    copy = directory.with_name("unknown")
    shutil.copytree(directory, copy)
    (copy / "config.json").write_text(json.dumps({**CASE["hf_config"], "model_type": "unheard_of"}))
    return copy


def references(tmp_path: Path) -> dict[str, Path]:
    """The configuration alone, and with an index."""
    whole = write_source(tmp_path / "whole", CASE)
    found = {"configuration": tmp_path / "configuration", "index": tmp_path / "index"}
    for directory in found.values():
        directory.mkdir()
        shutil.copy(whole / "config.json", directory)
    shutil.copy(whole / "model.safetensors.index.json", found["index"])
    return found


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("target", [{"target_format": "dcp", "naming": "hf"}, {"target_format": "npy"}])
@pytest.mark.usefixtures("registered")
def test_a_published_model_is_bound_on_its_way_out(damage, target, tmp_path):
    change, says = DAMAGE[damage]
    source = damaged(tmp_path / "hf", change)
    with pytest.raises(InputError, match=says):
        run_here(source=str(source), target=str(tmp_path / "out"), **target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kept_in", [{"target_format": "dcp", "naming": "hf"}, {"target_format": "npy"}])
@pytest.mark.usefixtures("registered")
def test_and_on_its_way_back_whatever_the_reference_shows(damage, kept_in, tmp_path):
    change, says = DAMAGE[damage]
    source = as_unknown(damaged(tmp_path / "hf", change))
    run_here(source=str(source), target=str(tmp_path / "kept"), **kept_in)
    for name, reference in references(tmp_path).items():
        by_index = name == "index" and damage == "missing"
        with pytest.raises(InputError, match="names 1 tensor that the source does not have" if by_index else says):
            run_here(
                source=str(tmp_path / "kept"),
                target=str(tmp_path / "back"),
                target_format="hf",
                reference=str(reference),
            )
        assert not (tmp_path / "back").exists()


def test_what_nobody_could_check_is_said_in_the_first_lines(tmp_path, distconv):
    source = as_unknown(damaged(tmp_path / "hf", DAMAGE["without elements"][0]))
    report = tmp_path / "report.json"
    options = (f"source={source}", f"target={tmp_path / 'dcp'}", "target_format=dcp", "naming=hf", f"report={report}")
    outcome = distconv(*options)
    assert outcome.status == 0, outcome.err
    first, *unchecked = " ".join(outcome.out.partition("\nsource ")[0].split()).split(" unchecked: ")
    assert first.startswith("model ")
    assert len(unchecked) == 2
    assert "names, shapes and number of the tensors" in unchecked[0]
    assert f"1 tensor without elements: {NORM}" in unchecked[1]
    assert all(note.startswith("not checked: ") for note in json.loads(report.read_text())["notes"])


def test_a_whole_model_says_nothing_of_the_kind(tmp_path, distconv):
    source = write_source(tmp_path / "hf", CASE)
    outcome = distconv(f"source={source}", f"target={tmp_path / 'dcp'}", "target_format=dcp", "naming=hf")
    assert (outcome.status, "unchecked" in outcome.out) == (0, False)


OMNI = load_case("qwen2_5omni__tp1_pp1")


def in_memory(name: str) -> str:
    """A name of Qwen2.5-Omni's thinker as transformers 5 holds it: below `model`, but for the head."""
    if not name.startswith("thinker."):
        return name
    bare = name.removeprefix("thinker.")
    if bare.startswith("lm_head."):
        return bare
    return bare.replace("model.", "model.language_model.", 1) if bare.startswith("model.") else f"model.{bare}"


def test_a_thinker_is_known_by_the_names_that_it_has_in_memory(tmp_path):
    published = write_source(tmp_path / "hf", OMNI)
    tensors = {in_memory(name): each for name, each in OMNI["source_tensors"].items()}
    assert tensors.keys() != OMNI["source_tensors"].keys()
    memory = write_source(tmp_path / "memory", {**OMNI, "source_tensors": tensors})
    held = []
    for source in (published, memory):
        run_here(source=str(source), target=str(tmp_path / f"mm-of-{source.name}"))
        found = inspect(tmp_path / f"mm-of-{source.name}", reference=source)
        assert found["problems"] == []
        held.append(found["tensors"])
    assert held[0] == held[1] != []


@pytest.mark.parametrize("name", ["internvl__tp1_pp1", "internvl__internlm2_tp1_pp1", "qwen2_5omni__tp1_pp1"])
@pytest.mark.parametrize("kept_in", [{}, {"target_format": "dcp"}])
def test_names_that_a_configuration_does_not_tell_are_not_made_up(name, kept_in, tmp_path):
    """Those of InternVL's language models, and of the whole that Qwen2.5-Omni's thinker is a part of."""
    case = load_case(name)
    source, trained = write_source(tmp_path / "hf", case), tmp_path / "trained"
    run_here(source=str(source), target=str(trained), **kept_in)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(source / "config.json", bare)
    job = {"source": str(trained), "reference": str(bare)}
    with pytest.raises(InputError, match=r"reference=.*bare: config\.json .*model\.safetensors\.index\.json"):
        run_here(**job, target=str(tmp_path / "back"), target_format="hf")
    assert not (tmp_path / "back").exists()
    # Where no published name is needed, nothing is asked.
    run_here(**job, target=str(tmp_path / "resplit"))
