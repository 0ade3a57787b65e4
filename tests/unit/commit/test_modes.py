"""Permissions of a result: those that are asked for, on all of it and on nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from unittest.mock import Mock

import pytest

from distconv.commit.modes import Modes, make_executable
from tests.unit.commit.targets import plant


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A directory with files, one of them executable, beside another one."""
    plant(tmp_path, {"new/a": "", "new/deep/b": "", "new/deep/run.sh": "", "other/c": ""})
    for path in tmp_path.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.suffix else 0o644)
    return tmp_path / "new"


def test_all_of_a_directory_gets_them(result):
    Modes(file=0o640, directory=0o2750).set_below(result)
    assert {path.name: mode(path) for path in (result, *result.rglob("*"))} == {
        "new": 0o2750,
        "deep": 0o2750,
        "a": 0o640,
        "b": 0o640,
        "run.sh": 0o750,
    }
    assert mode(result.parent / "other") == 0o755
    assert mode(result.parent / "other" / "c") == 0o644


@pytest.mark.parametrize("modes", [Modes(), Modes(file=0o600), Modes(directory=0o700)])
def test_what_is_not_asked_for_stays(modes, result):
    modes.set_below(result)
    assert mode(result / "deep") == (modes.directory or 0o755)
    assert mode(result / "a") == (modes.file or 0o644)


@pytest.mark.parametrize(("before", "after"), [(0o640, 0o750), (0o600, 0o700), (0o444, 0o555)])
def test_who_may_read_may_execute(before, after, result):
    (result / "a").chmod(before)
    make_executable(result / "a")
    assert mode(result / "a") == after


def test_what_is_executable_already_is_left_alone(result, monkeypatch):
    """There are file systems without modes, on which every file is."""
    monkeypatch.setattr(os, "chmod", Mock(side_effect=PermissionError))
    make_executable(result / "deep" / "run.sh")
