"""A Megatron file is compared with its plan before its data is: every difference is told, whatever else is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distconv.formats.base import Located
from distconv.formats.megatron.files import MegatronFiles
from distconv.formats.records import Entry, OutputFile, mismatch
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.tensors.virtual import whole

PATH = Path("/mm/release/mp_rank_00/model_optim_rng.pt")
FILE = OutputFile(path="mp_rank_00/model_optim_rng.pt", nbytes=24, order=(0,), batch=0)
A = Entry((), whole("bfloat16", (2, 3)), "a", key="model0", group=0)
B = Entry((), whole("float32", (3,)), "b", key="model1", group=1)
CONTENT = {
    "model0": {"a": ArchivedTensor("bfloat16", (2, 3), (3, 1), 64)},
    "model1": {"b": ArchivedTensor("float32", (3,), (1,), 128)},
    "checkpoint_version": 3.0,
}


@pytest.fixture
def located(monkeypatch):
    """What is found in a file of this content, changed."""

    def locate(change: Callable[[dict[str, Any]], object] = lambda _: None) -> Located:
        content = copy.deepcopy(CONTENT)
        change(content)
        monkeypatch.setattr("distconv.formats.megatron.files.read_archive", lambda _: content)
        monkeypatch.setattr("distconv.formats.megatron.files.is_written_by_torch", lambda _: False)
        return MegatronFiles(("model0", "model1")).locate(PATH, FILE, [A, B])

    return locate


def test_tensors_are_found_where_the_archive_has_them(located):
    assert located() == Located(offsets={("model0", "a"): 64, ("model1", "b"): 128})


@pytest.mark.parametrize(
    ("change", "differences", "found"),
    [
        (lambda held: held["model0"].clear(), ["model0/a is missing"], [B]),
        (lambda held: held.pop("model1"), ["has no model1", "model1/b is missing"], [A]),
        (lambda held: held.update(model1=[1]), ["has no model1", "model1/b is missing"], [A]),
        (lambda held: held["model0"].update(a=3), ["model0/a is missing"], [B]),
        (lambda held: held["model0"].update(x=held["model0"]["a"]), ["model0/x is not expected"], [A, B]),
        (lambda held: held.update(checkpoint_version=2.0), ["checkpoint_version is 2.0, expected 3.0"], [A, B]),
        (lambda held: held.pop("checkpoint_version"), ["checkpoint_version is None, expected 3.0"], [A, B]),
        (
            lambda held: held["model1"].update(b=ArchivedTensor("float32", (4,), (1,), 128)),
            ["model1/b is float32 [4], expected float32 [3]"],
            [A],
        ),
        (
            lambda held: held["model0"].update(a=ArchivedTensor("bfloat16", (2, 3), (1, 2), 64)),
            ["model0/a is not contiguous"],
            [B],
        ),
    ],
)
def test_every_difference_is_told_and_the_others_are_found(change, differences, found, located):
    result = located(change)

    starts = [line.removeprefix(f"{PATH}: ").removeprefix(f"{PATH} ") for line in result.differences]
    assert starts == differences
    assert list(result.offsets) == [(entry.key, entry.name) for entry in found]


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("bfloat16", (2, 3), None),
        ("bfloat16", [2, 3], None),
        ("float16", (2, 3), "is float16 [2, 3], expected bfloat16 [2, 3]"),
        ("bfloat16", (3, 2), "is bfloat16 [3, 2], expected bfloat16 [2, 3]"),
    ],
)
def test_a_mismatch_says_what_is_and_what_should_be(dtype, shape, expected):
    assert mismatch(A, dtype, shape) == expected
