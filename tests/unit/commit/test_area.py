"""The hidden names of jobs: which target they belong to can be told from them, whatever the target is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from distconv.commit.area import Area, areas, is_work

NAMES = ["hf", "lock", "0123abcd", "a.b", "a-b", "new\nline", ".distconv"]
DIGITS = "01234567"


@pytest.mark.parametrize("name", [None, *NAMES])
def test_an_area_knows_its_own(tmp_path, name):
    area = Area(home=tmp_path, name=name)
    assert not area.is_used()
    assert areas(tmp_path) == []
    for other in {None, *NAMES} - {name}:
        Area(home=tmp_path, name=other).work("89abcdef").mkdir()
    assert not area.is_used()
    area.work(DIGITS).mkdir()
    assert is_work(area.work(DIGITS))
    assert area.works() == [area.work(DIGITS)]
    assert area.is_used()
    assert area in areas(tmp_path)
    area.work(DIGITS).rmdir()
    area.lock.touch()
    assert area.is_used()
    assert area in areas(tmp_path)
    assert not is_work(area.lock)


def test_the_area_beside_a_directory_is_its_own(tmp_path):
    beside = Area(home=tmp_path, name="hf")
    beside.work(DIGITS).mkdir()
    assert areas(tmp_path / "hf") == [beside]
    assert areas(tmp_path / "hf-2") == []
    (tmp_path / "link").symlink_to("hf")
    assert areas(tmp_path / "link") == [beside]


def test_what_is_not_there_has_nothing(tmp_path):
    assert areas(Path("/")) == areas(tmp_path / "none" / "deeper") == []
    assert Area(home=tmp_path / "none", name=None).works() == []
