"""Language models as Megatron-core saved them: every sample becomes the published model, and is made of it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.golden.samples import DIALECTS, cases, held, published, reference, told, unpacked
from tests.here import outcome_here, run_here


@pytest.mark.parametrize("case", cases("mp"))
def test_a_sample_there_and_back(case, tmp_path):
    sample = unpacked(case, "mp", tmp_path)
    source = {"source": str(sample), "reference": str(reference(case, tmp_path))}
    outcome = outcome_here(**source, target=str(tmp_path / "hf"), target_format="hf")
    assert outcome.report["source_names"]["dialect"] == DIALECTS.get(case, "mcore_local")
    assert published(tmp_path / "hf") == told(case, "expected")

    run_here(source=str(tmp_path / "hf"), target=str(tmp_path / "back"), **like(case, outcome.report["source_layout"]))
    assert held(tmp_path / "back") == held(sample)


def like(case: str, layout: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make a result of the layout and the dialect of a sample."""
    how = told(case, "how")["case"]
    options: dict[str, Any] = {f"layout__{axis}": layout[axis] for axis in ("tp", "ep")}
    options["layout__stages__text"] = layout["stages"]["text"]
    if layout["vpp"] == 1:
        options["layout__pp"] = layout["pp"]
    if "padded" in how:
        options["vocab_multiple"] = how["padded"] // layout["tp"]
    return options | ({"dialect": DIALECTS[case]} if case in DIALECTS else {})
