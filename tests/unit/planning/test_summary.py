"""The report of a plan as plain data."""

from __future__ import annotations

import json
from pathlib import Path

from distconv.planning.summary import plan_report
from tests.unit.planning.test_plan import CONFIG, facts, planned


def test_the_report_is_the_plan_as_plain_data():
    found = planned(select=("vision",))
    report = json.loads(json.dumps(plan_report(CONFIG, found, facts(), Path("/mm/release"))))
    (nbytes,) = [file.nbytes for file in found.plan.files]
    assert report["layout"] == {
        "tp": 1, "pp": 1, "vpp": 1, "ep": 1, "modality_tp": {}, "placement": "sequential", "stages": {"vision": [[2]]},
        "expert_tp": None,
    }  # fmt: skip
    (file,), (stage,) = report["files"], report["stages"]
    assert file == {"path": "release/mp_rank_00/model_optim_rng.pt", "bytes": nbytes}
    assert stage["bytes"] == nbytes
    assert stage["parameters"] * 2 == nbytes
    left_out = {each["name"]: each for each in report["not_converted"]}
    assert left_out["model.norm.weight"] == {
        "directory": "/hf", "name": "model.norm.weight", "bytes": 32, "reason": "not selected: text (select=[vision])",
    }  # fmt: skip
