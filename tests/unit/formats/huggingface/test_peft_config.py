"""The configuration of the adapters in a directory, by the definition's names, and what training must know of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.huggingface.peft_config import read_scaling, scaling_notes
from distconv.models.definition_parser import parse_definition
from distconv.models.scaling import Scaling
from distconv.tensors.stored import SourceFile, SourceIndex, StoredTensor
from tests.unit import toy

DEFINITION = parse_definition(
    "toy", {**toy.content(), "adapters": "only", "renamed_prefixes": [["base_model.model.", ""], ["new.", "old."]]}
)
NAMES = [f"base_model.model.new.{layer}.fc.lora_{factor}.weight" for layer in range(2) for factor in "AB"]


def written(directory: Path, **settings: object) -> Path:
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 16, **settings}))
    return directory


def test_patterns_are_for_the_names_that_peft_saved(tmp_path):
    directory = written(tmp_path, alpha_pattern={"^new.1.fc": 4, "^old.0.fc": 2}, use_rslora=True)
    found = read_scaling(directory, NAMES, DEFINITION)
    where = str(tmp_path / "adapter_config.json")
    assert found == Scaling(alpha=16, rslora=True, alphas={"old.1.fc": 4}, where=where)


def test_a_directory_without_a_configuration_says_nothing(tmp_path):
    assert read_scaling(tmp_path, NAMES, DEFINITION) is None


def test_a_setting_that_cannot_be_converted_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/adapter_config.json: use_dora is true"):
        read_scaling(written(tmp_path, use_dora=True), NAMES, DEFINITION)


def index(ranks: tuple[int, ...]) -> SourceIndex:
    stored = {
        f"base_model.model.new.{layer}.fc.lora_{factor}.weight": (rank, 8) if factor == "A" else (8, rank)
        for layer, rank in enumerate(ranks)
        for factor in "AB"
    }
    file = SourceFile("/hf/adapter_model.safetensors", 1000)
    return SourceIndex(
        directory="/hf", tensors={name: StoredTensor(name, "float32", shape, file, 0) for name, shape in stored.items()}
    )


@pytest.mark.parametrize(
    ("scaling", "ranks", "says"),
    [
        (Scaling(alpha=16), (4, 8), []),
        (Scaling(alpha=None, rslora=True), (4, 4), []),
        (Scaling(alpha=16, rslora=True), (4, 4), ["by the rank needs lora_alpha=32"]),
        (Scaling(alpha=16, rslora=True), (4, 16), ["needs lora_alpha from 32 to 64, by module"]),
        (Scaling(alpha=16, alphas={"old.1.fc": 2}), (4, 4), ["needs lora_alpha from 2 to 16, by module"]),
        (Scaling(alpha=16, initialisation="pissa"), (4, 4), ["init_lora_weights is 'pissa', which changed"]),
    ],
)
def test_what_training_must_know_is_said(scaling, ranks, says):
    notes = scaling_notes(scaling, DEFINITION.spelled, index(ranks))
    assert len(notes) == len(says)
    assert all(expected in note for note, expected in zip(notes, says, strict=True))
