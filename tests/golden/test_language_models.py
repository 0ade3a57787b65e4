"""Language models as Megatron-core saved them: every sample becomes the published model, and is made of it again."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from distconv.formats.megatron.index import read_megatron
from tests.here import outcome_here, run_here

SAMPLES = Path(__file__).parent / "torch_dist"
# The dialect that a sample is in, where it is not the usual one.
DIALECTS = {
    "q3moe_16_grouped": "mcore_grouped",
    "te_q3moe_16_ep2": "mcore_te",
    "te_q3moe_19_ep2": "mcore_te",
    "te_qwen3_16_tp2": "mcore_te",
}
CASES = sorted(path.parent.name for path in SAMPLES.glob("*/mp.tar.xz"))


@pytest.mark.parametrize("case", CASES)
def test_a_sample_there_and_back(case, tmp_path):
    sample = unpacked(case, tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_bytes((SAMPLES / case / "config.json").read_bytes())
    source = {"source": str(sample), "reference": str(tmp_path / "config")}
    outcome = outcome_here(**source, target=str(tmp_path / "hf"), target_format="hf")
    assert outcome.report["source_names"]["dialect"] == DIALECTS.get(case, "mcore_local")
    assert published(tmp_path / "hf") == json.loads((SAMPLES / case / "expected.json").read_text())

    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "back"), **like(case, outcome.report["source_layout"]))
    assert held(tmp_path / "back") == held(sample)


def unpacked(case: str, directory: Path) -> Path:
    """The rank directories of a sample."""
    with tarfile.open(SAMPLES / case / "mp.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory / "mp"


def like(case: str, layout: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make a result of the layout and the dialect of a sample."""
    how = json.loads((SAMPLES / case / "how.json").read_text())["case"]
    options: dict[str, Any] = {f"layout__{axis}": layout[axis] for axis in ("tp", "ep")}
    options["layout__stages__text"] = layout["stages"]["text"]
    if layout["vpp"] == 1:
        options["layout__pp"] = layout["pp"]
    if "padded" in how:
        options["vocab_multiple"] = how["padded"] // layout["tp"]
    return options | ({"dialect": DIALECTS[case]} if case in DIALECTS else {})


def published(directory: Path) -> dict[str, Any]:
    """The tensors of a published model: element type, shape and checksum by name."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: described(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found


def held(directory: Path) -> dict[str, Any]:
    """The tensors of all ranks of a checkpoint, without extra states: element type, shape and checksum by place."""
    index = read_megatron(directory, None)
    found = {}
    for file in index.files:
        content = torch.load(file.file.path, map_location="cpu", weights_only=False)
        for key, name in file.tensors:
            found[f"{Path(file.file.path).parent.name}/{key}/{name}"] = described(content[key][name])
    return found


def described(tensor: torch.Tensor) -> dict[str, Any]:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
