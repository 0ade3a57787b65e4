"""Each format knows its directories, and the options that go with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.formats.iterations import TRACKER_NAME
from distconv.formats.registry import (
    FORMATS,
    format_named,
    found_in,
    source_contradictions,
    target_contradictions,
    unknown_problem,
)
from tests import configuration
from tests.unit.failing import failing_to_open

KIND = 'metadata.json={"sharded_backend": "torch_dist"}'


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["config.json"], "hf"),
        (["adapter_config.json"], "hf"),
        ([], "hf"),
        (["mp_rank_00/model_optim_rng.pt"], "megatron"),
        (["iter_0001000/mp_rank_00/model_optim_rng.pt", "config.json"], "megatron"),
        (["release/"], "megatron"),
        (["release/", "config.json"], "hf"),
        ([".metadata"], "dcp"),
        (["__0_0.distcp", "config.json"], "dcp"),
        (["iter_0000001/__0.metadata"], "dcp"),
        ([".metadata", "iter_0000001/mp_rank_00/model_optim_rng.pt"], "dcp"),
        ([KIND], "torch_dist"),
        ([KIND, ".metadata", "__0_0.distcp"], "torch_dist"),
        (["metadata.json", ".metadata", "__0_0.distcp"], "torch_dist"),
        (["metadata.json", ".metadata"], "dcp"),
        ([f"iter_0000001/{KIND}", "iter_0000001/.metadata"], "torch_dist"),
        ([KIND, ".metadata", "config.json"], "torch_dist"),
    ],
)
def test_a_directory_is_of_the_format_with_the_clearest_evidence(tmp_path: Path, paths: list[str], name: str):
    assert found_in(made(tmp_path, paths)).form.name == name
    assert found_in(tmp_path, None).mixed_problem is None


def made(directory: Path, paths: list[str]) -> Path:
    """A directory with directories and files, which are empty but for `KIND`."""
    for path in paths:
        place = directory / path.partition("=")[0]
        if path.endswith("/"):
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(path.partition("=")[2])
    return directory


RANKS = "mp_rank_00/model_optim_rng.pt"


@pytest.mark.parametrize(
    ("tracker", "iteration", "name"),
    [("1", None, "megatron"), ("2", None, "torch_dist"), ("3", None, "dcp"), ("1", "2", "torch_dist")],
)
def test_of_iterations_in_several_formats_the_chosen_one_decides(tmp_path, tracker, iteration, name):
    made(
        tmp_path, [f"iter_0000001/{RANKS}", f"iter_0000002/{KIND}", "iter_0000002/.metadata", "iter_0000003/.metadata"]
    )
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(tracker)
    assert found_in(tmp_path, iteration).form.name == name
    assert found_in(tmp_path, iteration).mixed_problem is None


def test_an_iteration_that_is_not_there_is_left_to_the_reader(tmp_path):
    made(tmp_path, [f"iter_0000001/{RANKS}", f"iter_0000002/{KIND}", "iter_0000003/"])
    for iteration in (None, "3", "7"):
        assert found_in(tmp_path, iteration).form.name == "megatron"
        assert found_in(tmp_path, iteration).mixed_problem is None


def test_of_many_iterations_no_other_is_looked_into_than_the_one_that_is_converted(tmp_path, monkeypatch):
    """A long training has hundreds, and a file server takes its time for each."""
    made(tmp_path, [f"iter_{number:07d}/.metadata" for number in range(100)])
    (tmp_path / TRACKER_NAME).write_text("42")
    listed: list[Path] = []
    listing = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or listing(path))
    for iteration, number in ((None, 42), ("7", 7)):
        listed.clear()
        found = found_in(tmp_path, iteration)
        assert found.form.name == "dcp"
        assert unknown_problem(found, "source") is found.mixed_problem is None
        assert listed == [tmp_path, tmp_path / f"iter_{number:07d}"]


@pytest.mark.parametrize("paths", [[RANKS, KIND, ".metadata"], [RANKS, ".metadata", "__0_0.distcp"]])
@pytest.mark.parametrize("above", ["", "release/", "iter_0000005/"])
def test_two_checkpoints_in_one_directory_are_refused(tmp_path, above, paths):
    made(tmp_path, [above + path for path in paths])
    problem = found_in(tmp_path, None).mixed_problem
    assert problem is not None
    assert problem.startswith(f"{tmp_path / above}: holds a Megatron checkpoint and a torch")


def test_a_tracker_that_cannot_be_read_is_not_taken_for_missing(tmp_path, monkeypatch):
    paths = ["iter_0000001/mp_rank_00/model_optim_rng.pt", f"iter_0000002/{KIND}", "iter_0000002/.metadata"]
    made(tmp_path, paths)
    (tmp_path / TRACKER_NAME).write_text("1")
    failing_to_open(monkeypatch, TRACKER_NAME)
    with pytest.raises(InputError, match=f"{TRACKER_NAME}: cannot be read: Input/output error"):
        found_in(tmp_path)
    # Where it does not matter, that is left to the reader.
    (tmp_path / "iter_0000002").rename(tmp_path / "other")
    assert found_in(tmp_path).form.name == "megatron"


def test_formats_are_told_apart():
    assert len({each.name for each in FORMATS}) == len({each.title for each in FORMATS}) == len(FORMATS)
    for each in FORMATS:
        assert format_named(each.name) is each


@pytest.mark.parametrize(
    ("options", "source", "problems"),
    [
        ({}, "hf", []),
        ({"layout__tp": 2, "layout__pp": 2, "tied_head": "write"}, "hf", []),
        (
            {"target_format": "dcp", "layout__tp": 2, "layout__pp": 2},
            "hf",
            [f"layout.{key}: target_format=dcp holds whole tensors; leave it out" for key in ("tp", "pp")],
        ),
        ({"naming": "hf"}, "hf", ["naming: goes with target_format=dcp"]),
        (
            {"packed_experts": "keep", "target_format": "dcp"},
            "hf",
            ["packed_experts: goes with target_format=dcp and naming=hf"],
        ),
        ({"packed_experts": "keep", "target_format": "dcp", "naming": "hf"}, "hf", []),
        ({"vocab_size": 8, "target_format": "hf"}, "megatron", []),
        ({"vocab_size": 8, "target_format": "dcp"}, "megatron", []),
        ({"vocab_size": 8, "target_format": "dcp", "naming": "hf"}, "megatron", []),
        (
            {"fill_from_reference": True},
            "megatron",
            ["fill_from_reference: goes with target_format=hf, or dcp and naming=hf"],
        ),
        ({"fill_from_reference": True, "target_format": "hf"}, "dcp", []),
        (
            {"reference": "/ref"},
            "hf",
            ["reference: goes with a Megatron, torch_dist or DCP source; source=/hf is a Hugging Face directory"],
        ),
        (
            {"source_layout__tp": 2},
            "dcp",
            ["source_layout: goes with a Megatron source; source=/hf is a torch.distributed.checkpoint"],
        ),
        (
            {"name_prefix": "model."},
            "megatron",
            ["name_prefix: goes with a DCP; source=/hf is a Megatron checkpoint"],
        ),
        ({"name_prefix": "model."}, "dcp", []),
        ({"name_prefix": "model.", "target_format": "dcp"}, "megatron", []),
        (
            {"target_format": "hf"},
            "hf",
            [
                (
                    "target_format=hf: source=/hf is a Hugging Face directory already; dtype=bfloat16, say, makes "
                    "another of it"
                )
            ],
        ),
        ({"target_format": "hf", "dtype": "bfloat16", "keep_dtype": ["*.A_log"]}, "hf", []),
        (
            {"target_format": "hf", "dtype": "bfloat16", "tied_head": "write"},
            "hf",
            ["tied_head: goes with a source in another format; source=/hf is a Hugging Face directory"],
        ),
        ({"target_format": "dcp"}, "dcp", []),
    ],
)
def test_options_go_with_formats(options, source, problems):
    job = configuration.job(**options)
    assert [*target_contradictions(job), *source_contradictions(job, format_named(source))] == problems
