"""The picture in README.md is that of the plan which it says."""

from __future__ import annotations

import pytest

from tests.picture import PATH, picture
from tests.readme import README, commands


def test_the_picture_is_what_python_m_tests_picture_makes():
    assert f"]({PATH.parent.name}/{PATH.name})" in README
    if PATH.read_text() != picture():
        pytest.fail(f"{PATH}: is not the picture of the plan; python -m tests.picture writes it")


def test_the_plan_is_that_of_the_first_command():
    words = next(each for each in commands() if "+model=qwen2vl " in each).replace("'", "").split()
    assert {"8", "layout.tp=2", "layout.stages.text=[1,10,10,7]", "layout.stages.vision=[32,0,0,0]"} <= set(words)
