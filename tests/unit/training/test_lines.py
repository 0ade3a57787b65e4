"""The lines for a layout: read back, they say the same layout."""

from __future__ import annotations

from typing import Any

import pytest

from distconv.layout.layout import CompleteLayout
from distconv.layout.request import Layout
from distconv.training.lines import lines_for
from distconv.training.model_file import layout_of_model_file
from distconv.training.script import layout_of_script
from distconv.training.told import completed


def made(stages: dict[str, Any], **sizes: Any) -> CompleteLayout:
    rows = {modality: tuple(map(tuple, each)) for modality, each in stages.items()}
    text = next(iter(rows.values()))
    plain = {"tp": 2, "ep": 1, "modality_tp": {}, "placement": "sequential"}
    return CompleteLayout(**{**plain, "pp": len(text[0]), "vpp": len(text), "stages": rows, **sizes})


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in flat.items():
        *parts, last = key.split(".")
        inner = content
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return content


@pytest.mark.parametrize(
    "layout",
    [
        made({"text": [[1, 10, 10, 7]], "vision": [[32, 0, 0, 0]]}),
        made({"text": [[0, 0, 0, 1], [4, 4, 4, 4]], "vision": [[8, 8, 8, 8], [0, 0, 0, 0]]}),
        made({"text": [[4, 4]], "vision": [[32, 0]], "audio": [[0, 32]]}, modality_tp={"vision": 1}, ep=4),
    ],
)
def test_there_and_back(layout: CompleteLayout) -> None:
    lines = lines_for(layout, "mindspeed_mm")
    script = layout_of_script("train.sh", f"run {' '.join(lines['flags'])}")
    assert script is not None
    asked = Layout(from_=["train.sh", "model.json"])
    told = completed(asked, [script, layout_of_model_file("model.json", nested(lines["model_file"]))])
    assert (told.tp, told.pp, told.vpp, told.ep or 1) == (layout.tp, layout.pp, layout.vpp, layout.ep)
    assert told.stages == layout.stages
    assert {**told.modality_tp} == {**layout.modality_tp}


def test_of_megatron() -> None:
    even = made({"text": [[2, 2], [2, 2]]}, expert_tp=1, ep=8)
    assert lines_for(even, "mcore_te") == {
        "flags": [
            "--tensor-model-parallel-size 2",
            "--pipeline-model-parallel-size 2",
            "--num-virtual-stages-per-pipeline-rank 2",
            "--expert-model-parallel-size 8",
            "--expert-tensor-parallel-size 1",
        ],
        "model_file": {},
    }
    uneven = made({"text": [[1, 2], [0, 2]]})
    assert "--pipeline-model-parallel-layout 'Et|tt||ttL'" in lines_for(uneven, "mcore_te")["flags"]
    assert "--num-layer-list 1,2,0,2" in lines_for(uneven, "mindspeed_llm")["flags"]
    assert len(lines_for(uneven, "mcore_te", predicts=True)["flags"]) == 3
