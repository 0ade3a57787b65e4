"""The report of a plan as plain data, and the file that it is written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distconv.errors import InputError
from distconv.planning.summary import check_report, plan_report, write_report
from tests.unit.planning.test_plan import CONFIG, facts, planned


def test_the_report_is_the_plan_as_plain_data():
    found = planned(select=("vision",))
    report = json.loads(json.dumps(plan_report(CONFIG, found, facts(), Path("/mm/release"))))
    (nbytes,) = [file.nbytes for file in found.plan.files]
    assert report["layout"] == {
        "tp": 1, "pp": 1, "vpp": 1, "ep": 1, "modality_tp": {}, "placement": "sequential", "stages": {"vision": [[2]]},
    }  # fmt: skip
    (file,), (stage,) = report["files"], report["stages"]
    assert file == {"path": "release/mp_rank_00/model_optim_rng.pt", "bytes": nbytes}
    assert stage["bytes"] == nbytes
    assert stage["parameters"] * 2 == nbytes
    left_out = {each["name"]: each for each in report["not_converted"]}
    assert left_out["model.norm.weight"] == {
        "directory": "/hf", "name": "model.norm.weight", "bytes": 32, "reason": "not selected: text (select=[vision])",
    }  # fmt: skip


def test_a_report_is_written_and_refused_before_anything_is_done(tmp_path):
    path = tmp_path / "report.json"
    check_report(path)
    assert not path.exists()
    write_report(path, {"a": [1]})
    check_report(path)
    assert json.loads(path.read_text()) == {"a": [1]}
    for wrong in (tmp_path, tmp_path / "none" / "report.json"):
        with pytest.raises(InputError, match=f"report={wrong}: cannot be written"):
            check_report(wrong)
        with pytest.raises(InputError, match=f"report={wrong}: cannot be written"):
            write_report(wrong, {})
