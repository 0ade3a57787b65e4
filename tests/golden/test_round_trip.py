"""Every golden case comes back: tensors, index and configuration of the published checkpoint, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from distconv import diff
from distconv.errors import InputError
from tests.checkpoints import case_names, load_case, overrides, write_source
from tests.here import run_here

CASES = [name for name in case_names() if load_case(name)["expect"] == "match"]
# What the Megatron side does not hold, and cannot give back.
LOST = {
    "qwen2vl__tied_with_head_pp2": "a head that differs from the embedding it is tied to is replaced by it",
    "videoalign__plain_canonical_resize88": "rows of the vocabulary were left out",
    "qwen2_5vl__dcp_llm_hf_dir": "the language model is another one",
    "qwen2vl__llm_hf_dir_pp1": "the language model is another one",
}


def contents(directory: Path) -> dict[str, Any]:
    """All files of a directory but its record, by name: the tensors of safetensors files, the bytes of others."""
    files = [path for path in directory.iterdir() if path.name != "distconv.json"]
    return {path.name: tensors(path) if path.suffix == ".safetensors" else path.read_bytes() for path in files}


def tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """The tensors of a file, read without distconv; its library accepts the file, too."""
    with safe_open(path, "numpy") as file:
        names = set(file.keys())
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header.keys() == names
    return {
        name: (each["dtype"], each["shape"], data[start + each["data_offsets"][0] : start + each["data_offsets"][1]])
        for name, each in header.items()
    }


@pytest.mark.parametrize("name", [name for name in CASES if name not in LOST])
def test_a_case_comes_back(name, tmp_path):
    case = load_case(name)
    source = write_source(tmp_path / "hf", case)
    (source / "tokenizer.json").write_text("{}")
    run_here(*overrides(case), source=str(source), target=str(tmp_path / "trained"))
    options = {
        "source": str(tmp_path / "trained"),
        "target": str(tmp_path / "back"),
        "target_format": "hf",
        "report": str(tmp_path / "report.json"),
    }
    left_out = set(case.get("not_converted", ()))
    found = diff(source, tmp_path / "trained")
    assert [found["different"], found["only_in_target"], found["copies"]] == [[], [], []]
    # What no parameter is made of is no difference; what was not selected is one.
    selected = "select=[vision]" in overrides(case)
    assert len(found["only_in_source"]) == (len(left_out) if selected else 0)
    if left_out:
        # Nothing is filled in silently.
        with pytest.raises(InputError, match=rf"names {len(left_out)} tensors? that the source does not have"):
            run_here(**options)
        assert not (tmp_path / "back").exists()
        options["fill_from_reference"] = True

    run_here(**options)

    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["hf"]["filled_from_reference"]) == left_out
    assert contents(tmp_path / "back") == contents(source)
    run_here(**options, action="verify")
