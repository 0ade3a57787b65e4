"""Processes compare two checkpoints together: each its share of the bytes, in constant memory, with one answer."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import load_case, write_source
from tests.here import run_here
from tests.processes.jobs import mpirun, run, torchrun
from tests.processes.memory import SIZES, as_type, assert_alike, peak, shares_of_two, write_lookalike

CASE = load_case("qwen3vl_moe__tp2_pp2")


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_the_same_answer_as_of_one_process(launcher, tmp_path, distconv):
    source = write_source(tmp_path / "hf", CASE, single_file=True)
    run_here(f"source={source}", f"target={tmp_path / 'mm'}", "layout.tp=2", "layout.pp=2")
    tensors = load_file(source / "model.safetensors")
    for name in list(tensors)[::7]:
        tensors[name].view(torch.int16)[-1:] ^= 1
    save_file(tensors, source / "model.safetensors")
    given = ["action=diff", f"source={source}", f"target={tmp_path / 'mm'}"]
    assert distconv(*given, f"report={tmp_path / 'one.json'}").status == 1
    outcome = run(launcher(2, *given, "report=two.json"), tmp_path)
    assert outcome.status == 1, outcome.err
    assert not outcome.shows_its_inside
    assert outcome.told.count("tensors differ\n") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    shares = two.pop("processes")
    assert len(shares) == 2
    assert all(share["bytes_read"] for share in shares)
    assert {**two, "processes": one["processes"]} == one
    assert len(two["different"]) == len(list(tensors)[::7])


def test_memory_does_not_grow_with_the_model(tmp_path):
    peaks = []
    for size in SIZES:
        directory = tmp_path / str(size)
        directory.mkdir()
        for name in ("hf", "other"):
            write_lookalike(directory / name, size, as_type("bfloat16"))
        given = ["action=diff", f"source={directory / 'hf'}", f"target={directory / 'other'}"]
        peaks.append(peak(shares_of_two(directory, *given)))
    assert_alike(*peaks)
