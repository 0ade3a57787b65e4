"""What real classes save converts: both spellings of the names, untied and tied, with the model detected."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

SPELLINGS = {"hf": {"visual.", "model.", "lm_head."}, "hf_memory": {"model.", "lm_head."}}


@pytest.mark.parametrize("source", ["untied", "tied"])
def test_both_spellings_give_the_same_checkpoint(
    source: str, sources: Path, run_program: Callable[..., None], tmp_path: Path
) -> None:
    results = []
    for spelling, prefixes in SPELLINGS.items():
        directory = sources / source / spelling
        names = tensor_names(directory)
        assert {name.partition(".")[0] + "." for name in names} == prefixes - (
            {"lm_head."} if source == "tied" else set()
        )
        assert any(name.startswith("model.visual.") for name in names) == (spelling == "hf_memory")
        target = tmp_path / spelling
        layout = ["layout.tp=2", "layout.stages.text=[1,3]", "layout.stages.vision=[4,0]"]
        run_program("-m", "distconv", f"source={directory}", f"target={target}", *layout)
        results.append(contents(target))
    assert results[0] == results[1]
    assert len(results[0]) == 5


def tensor_names(directory: Path) -> set[str]:
    names: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            names |= set(shard.keys())
    return names


def contents(directory: Path) -> dict[str, str]:
    """What a result holds but the name of the source that it remembers."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "distconv.json"
    }
