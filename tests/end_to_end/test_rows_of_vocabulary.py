"""Rows of the vocabulary that a result does not hold are said to be left out, and if they were more than padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import load_case, write_source
from tests.here import run_here

CASE = load_case("qwen2vl__tp1_pp1")
ROWS = CASE["hf_config"]["vocab_size"]
NAMES = ("model.embed_tokens.weight", "lm_head.weight")
MORE: dict[str, torch.Tensor] = {
    "zeros": torch.zeros(3, 1),
    "equal": torch.full((3, 1), 2.0),
    "trained": torch.arange(3.0).reshape(3, 1),
    "a token": torch.ones(1, 1),
}
TRAINED = ("trained", "a token")


def trained_with(more: torch.Tensor, tmp_path: Path) -> tuple[Path, Path]:
    """A Megatron checkpoint with so many rows more, and the reference that knows nothing of them."""
    reference = write_source(tmp_path / "reference", CASE)
    source = write_source(tmp_path / "hf", CASE, single_file=True)
    tensors = load_file(source / "model.safetensors")
    for name in NAMES:
        width = tensors[name].shape[1]
        tensors[name] = torch.cat([tensors[name], more.expand(-1, width).to(tensors[name].dtype)])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text(json.dumps({**CASE["hf_config"], "vocab_size": ROWS + len(more)}))
    run_here(source=str(source), target=str(tmp_path / "mm"), layout__tp=1 if (ROWS + len(more)) % 2 else 2)
    return tmp_path / "mm", reference


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("options", [(), ("target_format=dcp", "naming=hf")])
def test_what_is_cut_is_said_and_whether_it_was_padding(more, options, tmp_path, distconv):
    source, reference = trained_with(MORE[more], tmp_path)
    report = tmp_path / "report.json"
    given = options or ("target_format=hf",)
    outcome = distconv(
        f"source={source}", f"target={tmp_path / 'back'}", f"reference={reference}", f"report={report}", *given
    )
    assert outcome.status == 0, outcome.err
    count = len(MORE[more])
    notes = [note for note in json.loads(report.read_text())["notes"] if "beyond" in note]
    for name in NAMES:
        said = [note for note in notes if note.startswith(f"{name}: {count} row")]
        assert [f"beyond the {ROWS} of reference=" in note for note in said] == [True] * len(said)
        assert all(f"a reference whose config.json says vocab_size {ROWS + count} keeps them" in note for note in said)
        assert sum("left out as padding" in note for note in said) == 1
        assert sum("left out, and no padding" in note for note in said) == (more in TRAINED)
    assert ("left out, and no padding" in outcome.out) == (more in TRAINED)


def test_a_reference_that_knows_the_rows_keeps_them(tmp_path):
    source, reference = trained_with(MORE["trained"], tmp_path)
    known: dict[str, Any] = {**CASE["hf_config"], "vocab_size": ROWS + 3}
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(known))
    report = tmp_path / "report.json"
    run_here(
        source=str(source),
        target=str(tmp_path / "back"),
        target_format="hf",
        reference=str(other),
        report=str(report),
    )
    assert json.loads(report.read_text())["notes"] == []
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert {found[name].shape[0] for name in NAMES} == {ROWS + 3}
    assert reference.exists()
