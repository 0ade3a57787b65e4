"""Every golden case: converted byte for byte and proved by `action=verify`, or refused with nothing written.

A case on whose layout the training side computes wrong values is converted unchecked, and refused otherwise.
"""

from __future__ import annotations

import pytest

from tests.checkpoints import (
    case_names,
    describe_dcp,
    describe_result,
    is_refused,
    load_case,
    overrides,
    write_source,
)


@pytest.mark.parametrize("name", case_names())
def test_case(name, tmp_path, distconv):
    case = load_case(name)
    arguments = [*overrides(case), f"source={write_source(tmp_path / 'hf', case)}", f"target={tmp_path / 'mm'}"]
    if "llm" in case:
        arguments.append(f"text_source={write_source(tmp_path / 'llm', case['llm'])}")

    outcome = distconv(*arguments)

    if case["expect"] == "reject":
        assert outcome.status == 2, outcome
        assert outcome.out == ""
        assert not (tmp_path / "mm").exists()
        return
    assert outcome.status == 0, outcome.err
    if "dcp" in case:
        assert describe_dcp(tmp_path / "mm" / "release") == case["dcp"]
    else:
        assert describe_result(tmp_path / "mm") == case["files"]
    assert (tmp_path / "mm" / "latest_checkpointed_iteration.txt").read_text() == case.get("tracker", "release")
    assert sorted(path.name for path in (tmp_path / "mm").iterdir()) == ["latest_checkpointed_iteration.txt", "release"]
    assert distconv(*arguments, "action=verify").status == 0


@pytest.mark.parametrize("name", [name for name in case_names() if is_refused(load_case(name))])
def test_a_layout_that_trains_on_wrong_values_is_refused(name, tmp_path, distconv):
    case = load_case(name)
    options = [option for option in overrides(case) if option != "layout.check=false"]
    outcome = distconv(*options, f"source={write_source(tmp_path / 'hf', case)}", f"target={tmp_path / 'mm'}")
    assert outcome.status == 2, outcome
    assert "layout.stages.text=[" in outcome.err
    assert "on the first stage, expected at least 3 (deepstack): the training side adds" in outcome.err
    assert outcome.out == ""
    assert not (tmp_path / "mm").exists()
