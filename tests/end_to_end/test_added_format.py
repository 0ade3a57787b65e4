"""A format of one module is a source and a target with one line in the registry, and no change elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distconv.formats import registry
from tests.checkpoints import load_case, write_source
from tests.end_to_end.test_readme import tensors
from tests.here import run_here
from tests.npy_format import Npy

CASE = load_case("qwen2vl__tp1_pp1")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face directory, in a program whose registry has one line more."""
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, Npy()))
    return write_source(tmp_path / "hf", CASE)


def contents(directory: Path) -> dict[str, bytes]:
    """The files but for the record, which says of which source they are made."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "distconv.json"]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_a_model_goes_to_the_format_and_back(model, tmp_path):
    npy, back = tmp_path / "npy", tmp_path / "back"
    run_here(source=str(model), target=str(npy), target_format="npy")
    assert {path.stem for path in npy.glob("*.npy")} == set(CASE["source_tensors"])
    name, (_, shape, _) = next(iter(CASE["source_tensors"].items()))
    assert list(np.load(npy / f"{name}.npy").shape) == shape
    run_here(source=str(npy), target=str(back), target_format="hf", reference=str(model))
    assert tensors(back) == tensors(model)


def test_it_goes_to_the_other_formats_as_its_source_did(model, tmp_path):
    npy = tmp_path / "npy"
    run_here(source=str(model), target=str(npy), target_format="npy")
    run_here(source=str(model), target=str(tmp_path / "of-hf"), layout__tp=2)
    run_here(source=str(npy), target=str(tmp_path / "of-npy"), layout__tp=2, reference=str(model))
    assert contents(tmp_path / "of-npy") == contents(tmp_path / "of-hf")
    run_here(source=str(npy), target=str(tmp_path / "dcp"), target_format="dcp", reference=str(model))
    run_here(source=str(tmp_path / "dcp"), target=str(tmp_path / "back"), target_format="hf")
    assert tensors(tmp_path / "back") == tensors(model)


def test_its_tensors_are_cast(model, tmp_path):
    wide, back = tmp_path / "wide", tmp_path / "back"
    options = {"target_format": "npy", "dtype": "float32"}
    run_here(source=str(model), target=str(wide), **options)
    run_here(source=str(model), target=str(wide), action="verify", **options)
    assert {np.load(path).dtype for path in wide.glob("*.npy")} == {np.dtype(np.float32)}
    run_here(source=str(wide), target=str(back), target_format="hf", reference=str(model), dtype="reference")
    assert {name: (dtype, shape, quiet(data)) for name, (dtype, shape, data) in tensors(model).items()} == tensors(back)


def quiet(data: bytes) -> bytes:
    """The elements of bfloat16 with the NaN that a cast makes of every other."""
    bits = np.frombuffer(data, np.uint16)
    return np.where(bits & 0x7FFF > 0x7F80, bits & 0x8000 | 0x7FC0, bits).astype(np.uint16).tobytes()


def test_its_result_is_verified(model, tmp_path, distconv):
    npy = tmp_path / "npy"
    job = [f"source={model}", f"target={npy}", "target_format=npy"]
    assert distconv(*job).status == 0
    assert distconv(*job, "action=verify").status == 0
    damaged = min(npy.glob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    found = distconv(*job, "action=verify")
    assert (found.status, "differs from the source" in found.err) == (1, True)
    (npy / "more.npy").touch()
    assert "more.npy: is not expected" in distconv(*job, "action=verify").err


def test_its_words_are_in_help_plan_and_report(model, tmp_path, distconv):
    assert "one .npy file per tensor" in " ".join(distconv("--help").out.split())
    report = tmp_path / "report.json"
    job = (f"source={model}", f"target={tmp_path / 'npy'}", "target_format=npy", "action=plan", f"report={report}")
    count = len(CASE["source_tensors"])
    assert f"npy      {count} tensors in as many files" in distconv(*job).out
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["npy"] == {"tensors": count}
    refused = distconv(*job, "layout.tp=2")
    assert (refused.status, "layout.tp: goes with target_format=megatron" in refused.err) == (2, True)


def test_a_directory_of_the_format_is_recognised(model, tmp_path, distconv):
    npy = tmp_path / "npy"
    run_here(source=str(model), target=str(npy), target_format="npy")
    again = distconv(f"source={npy}", f"target={tmp_path / 'again'}", "target_format=npy", f"reference={model}")
    assert "is a directory of npy files already" in again.err
