"""What lies in a source beside what is read is named, with what decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import load_case, write_source
from tests.here import outcome_here, run_here

CASE = load_case("qwen2vl__tp1_pp1")


@pytest.fixture
def hf(tmp_path) -> Path:
    return write_source(tmp_path / "hf", CASE)


def notes(source: Path, **options: Any) -> list[str]:
    """The notes of a plan."""
    given = {"source": str(source), "target": str(source.parent / "result"), "action": "plan", **options}
    return [note.replace(f"{source.parent}/", "") for note in outcome_here(**given).report["notes"]]


def test_nothing_is_said_of_a_directory_that_holds_the_model_alone(hf):
    (hf / "tokenizer.json").write_text("{}")
    assert notes(hf) == []


def test_weights_that_are_not_read(hf):
    for name in ("pytorch_model.bin", "stray.safetensors", "optimizer.pt", "pytorch_model.bin.index.json"):
        (hf / name).write_bytes(b"not at all")
    (note,) = notes(hf)
    assert note.startswith("hf: not read: optimizer.pt, pytorch_model.bin, pytorch_model.bin.index.json, stray.saf")
    assert (
        "the model is what model-00001-of-00005.safetensors, model-00002-of-00005.safetensors and 3 more hold" in note
    )


@pytest.mark.parametrize("names", [["adapter_config.json"], ["adapter_config.json", "adapter_model.safetensors"]])
def test_an_adapter_that_is_not_merged(names, hf):
    for name in names:
        (hf / name).write_bytes(b"{}")
    (note,) = notes(hf)
    assert note.startswith(f"hf: not read: {', '.join(names)}: an adapter that is not merged")
    assert "+model=NAME_lora" in note


def test_both_in_the_directory_of_the_language_model(hf, tmp_path):
    shutil.copytree(hf, tmp_path / "text")
    (tmp_path / "text" / "pytorch_model.bin").write_bytes(b"not at all")
    (note,) = notes(hf, text_source=str(tmp_path / "text"))
    assert note.startswith("text: not read: pytorch_model.bin")


def test_weights_of_a_reference(hf, tmp_path):
    run_here(source=str(hf), target=str(tmp_path / "mm"))
    (hf / "pytorch_model.bin").write_bytes(b"not at all")
    job = {"target_format": "hf"}
    assert notes(tmp_path / "mm", **job) == ["reference=hf: not read, beside the weights: pytorch_model.bin"]
    (hf / "pytorch_model.bin").unlink()
    (hf / "model-00003-of-00005.safetensors").unlink()
    (note,) = notes(tmp_path / "mm", **job)
    assert note.startswith("reference=hf: of its weights nothing but the index is used: ")
    assert "model-00003-of-00005.safetensors: no such file" in note


def test_the_iteration_that_was_chosen(hf, tmp_path):
    mm = tmp_path / "mm"
    run_here(source=str(hf), target=str(mm))
    assert notes(mm, reference=str(hf)) == []
    shutil.copytree(mm / "release", mm / "iter_0000007")
    (note,) = notes(mm, reference=str(hf))
    assert note.startswith("mm: of 2 iterations release is converted, as latest_checkpointed_iteration.txt says; ")
    assert note.endswith("iteration=N takes another, of iter_0000007")
    assert notes(mm, reference=str(hf), iteration="7") == []
    assert notes(mm / "release", reference=str(hf)) == []


def test_files_beside_those_of_ranks_and_chunks(hf, tmp_path):
    for name, options in (("mm", {"layout__tp": 2}), ("dcp", {"target_format": "dcp"})):
        run_here(source=str(hf), target=str(tmp_path / name), **options)
    for rank in (0, 1):
        (tmp_path / "mm" / "release" / f"mp_rank_0{rank}" / "distrib_optim.pt").write_bytes(b"x")
    (tmp_path / "dcp" / "release" / "__9_0.distcp").write_bytes(b"x")
    assert notes(tmp_path / "mm") == [
        "not carried over: distrib_optim.pt (of 2 ranks): the model is in model_optim_rng.pt alone"
    ]
    assert notes(tmp_path / "dcp") == [
        "dcp/release: not read: __9_0.distcp: .metadata names nothing in them",
    ]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_tensors_that_a_dcp_holds_twice(hf, tmp_path):
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415 - slow to import
    from safetensors.torch import load_file  # noqa: PLC0415

    tensors = {name: each for path in hf.glob("*.safetensors") for name, each in load_file(path).items()}
    state = {"model": tensors, "ema": {"lm_head.weight": tensors["lm_head.weight"]}, "optimizer": {"step": 3}}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    training, copy = notes(tmp_path / "dcp", reference=str(hf))
    assert training == "not carried over: optimizer: training state; only the model is converted"
    assert copy.startswith(
        "not carried over: ema: named as tensors of the model are, but what is under the prefix model."
    )


def test_what_is_said_is_shared_with_all_processes(hf):
    """The facts of a job survive being sent."""
    from distconv.formats.registry import Options  # noqa: PLC0415 - of this test alone
    from distconv.planning.facts import Facts  # noqa: PLC0415
    from distconv.planning.look import look  # noqa: PLC0415
    from distconv.planning.plan import plan_job  # noqa: PLC0415
    from tests.configuration import content  # noqa: PLC0415
    from tests.here import LIBRARY  # noqa: PLC0415

    (hf / "pytorch_model.bin").write_bytes(b"not at all")
    options = Options.from_content(content(source=str(hf), target=str(hf.parent / "mm")))
    facts = look(options, None, LIBRARY)
    sent = Facts.from_json(json.loads(json.dumps(facts.to_json())))
    assert plan_job(options, sent).notes == plan_job(options, facts).notes != ()
