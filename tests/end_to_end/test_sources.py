"""Sources of other shapes: single files, state dicts, adapters beside base weights, the Hugging Face cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distconv import writing
from distconv.transfer.write import write_files
from tests.checkpoints import describe_result, forget, load_case, overrides, tensor_bytes, write_source

VIDEOALIGN = load_case("videoalign__peft_canonical_pp1")


def write_state_dict(directory: Path, case: dict[str, Any], name: str) -> Path:
    """The source of a case as one file that torch.save wrote."""
    source = write_source(directory, case)
    for shard in (*source.glob("*.safetensors"), source / "model.safetensors.index.json"):
        shard.unlink()
    state = {
        tensor: torch.frombuffer(bytearray(tensor_bytes(tensor, dtype, shape)), dtype=getattr(torch, dtype)).view(shape)
        for tensor, (dtype, shape, _) in case["source_tensors"].items()
    }
    torch.save(state, source / name)
    return source


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin"])
def test_a_state_dict_gives_the_golden_result(name, tmp_path, distconv):
    source = write_state_dict(tmp_path / "hf", VIDEOALIGN, name)
    outcome = distconv(*overrides(VIDEOALIGN), f"source={source}", f"target={tmp_path / 'mm'}")
    assert outcome.status == 0, outcome.err
    assert describe_result(tmp_path / "mm") == VIDEOALIGN["files"]


def test_the_adapters_alone_of_a_source_that_holds_both(tmp_path, distconv):
    source = write_source(tmp_path / "hf", VIDEOALIGN)
    outcome = distconv(*overrides(VIDEOALIGN), "lora_only=true", f"source={source}", f"target={tmp_path / 'mm'}")
    assert outcome.status == 0, outcome.err
    (found,), (expected,) = describe_result(tmp_path / "mm").values(), VIDEOALIGN["files"].values()
    assert found["model"] == {name: tensor for name, tensor in expected["model"].items() if ".lora_" in name}
    assert "not an adapter (lora_only=true)" in outcome.out


def test_a_single_file_and_a_snapshot_of_the_cache_are_sources(tmp_path, distconv):
    case = load_case("qwen2vl__tp2_pp2")
    single = write_source(tmp_path / "single", case, single_file=True)
    shards = write_source(tmp_path / "blobs", case)
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in shards.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    for number, source in enumerate((single, snapshot)):
        outcome = distconv(*overrides(case), f"source={source}", f"target={tmp_path / str(number)}")
        assert outcome.status == 0, outcome.err
        assert describe_result(tmp_path / str(number)) == case["files"]


def test_an_iteration_has_its_directory_and_its_tracker(tmp_path, distconv):
    case = load_case("qwen2vl__tp1_pp1")
    source = write_source(tmp_path / "hf", case)
    outcome = distconv(*overrides(case), f"source={source}", f"target={tmp_path / 'mm'}", "iteration=1000")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "mm" / "latest_checkpointed_iteration.txt").read_text() == "1000"
    assert [path.parts[-3] for path in (tmp_path / "mm").rglob("*.pt")] == ["iter_0001000"]


def test_the_model_definitions_are_listed(distconv):
    outcome = distconv("action=models")
    assert outcome.status == 0
    assert ["qwen2vl", "qwen2_vl"] in [line.split() for line in outcome.out.splitlines()]
    for text in ("internvl_chat", "qwen2_5_vl (adapters: name it with +model)"):
        assert text in outcome.out


def test_a_result_that_appears_while_a_job_runs_is_not_replaced_unasked(tmp_path, distconv, monkeypatch):
    case = load_case("qwen2vl__tp1_pp1")
    source, result = write_source(tmp_path / "hf", case), tmp_path / "mm" / "release"

    def overtaken(*arguments: Any) -> Any:
        result.mkdir()
        (result / "theirs").touch()
        return write_files(*arguments)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(writing, "write_files", overtaken)
        outcome = distconv(*overrides(case), f"source={source}", f"target={tmp_path / 'mm'}")
    assert outcome.status == 2
    assert "release is already there" in outcome.err
    assert [path.name for path in (tmp_path / "mm").rglob("*") if ".distconv" not in str(path)] == ["release", "theirs"]
    # The work is not lost.
    assert "the same command continues it" in outcome.out
    result.rename(tmp_path / "theirs")
    outcome = distconv(*overrides(case), f"source={source}", f"target={tmp_path / 'mm'}")
    assert (outcome.status, "had been finished before" in outcome.out) == (0, True)
    assert not [path for path in (tmp_path / "mm").iterdir() if path.name.startswith(".")]


def test_a_rank_whose_others_are_missing_is_no_model_without_text(tmp_path, distconv):
    """A first stage with the vision encoder alone, whose name says that there are more."""
    case = load_case("qwen2vl__leading_zero_llm_pp2")
    source, trained = write_source(tmp_path / "hf", case), tmp_path / "mm"
    assert distconv(*overrides(case), f"source={source}", f"target={trained}").status == 0
    shutil.rmtree(trained / "release" / "mp_rank_00_001")
    # Its record knows better.
    forget(trained)
    (bare := tmp_path / "bare").mkdir()
    shutil.copy(source / "config.json", bare)
    job = (f"source={trained}", f"target={tmp_path / 'back'}", "target_format=hf", f"reference={bare}")
    outcome = distconv(*job)
    assert outcome.status == 2
    assert "nothing of the text modality" in outcome.err
    assert "mp_rank_00_000 is the name of one of several" in outcome.err
    assert not (tmp_path / "back").exists()
    assert distconv(*job, "select=[vision]").status == 0
