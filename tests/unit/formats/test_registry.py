"""Each format knows its directories, and the options that go with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from distconv.formats.registry import (
    FORMATS,
    format_named,
    format_of,
    source_contradictions,
    target_contradictions,
)
from tests import configuration


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
    ],
)
def test_a_directory_is_of_the_format_with_the_clearest_evidence(tmp_path: Path, paths: list[str], name: str):
    for path in paths:
        place = tmp_path / path
        if path.endswith("/"):
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    assert format_of(tmp_path).name == name


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
