"""Layouts as they are given in Python: checked where they are made, in the words of the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.layout.request import Layout, SourceLayout

ROW = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@given(ROW)
def test_one_list_is_one_virtual_stage(row):
    assert Layout(stages={"text": row}).stages == {"text": (tuple(row),)} == Layout(stages={"text": [row]}).stages


@given(st.lists(ROW, min_size=1, max_size=3))
def test_lists_are_held_as_rows_and_rows_are_taken(rows):
    held = SourceLayout(stages={"vision": rows, "audio": None}).stages
    assert held == {"vision": tuple(map(tuple, rows))}
    assert SourceLayout(stages=held).stages == held


@pytest.mark.parametrize("record", [Layout, SourceLayout])
def test_what_is_wrong_is_told_with_its_key(record):
    with pytest.raises(InputError) as caught:
        record(tp=0, stages={"text": [1, -1], "txt": [1]}, modality_tp={"vision": 2.0}, placement="v_shape")
    assert caught.value.problems == [
        f"{record.GROUP}.{problem}"
        for problem in (
            "tp=0: expected an integer from 1 to 65536",
            "stages: unknown key 'txt'; did you mean 'text'?",
            "stages.text=[1,-1]: expected layers per stage, such as [1,10,10,7], or one such list per virtual stage",
            "modality_tp.vision=2.0: expected an integer from 1 to 65536",
            "placement=v_shape: expected one of sequential, u_shape; did you mean u_shape?",
        )
    ]
