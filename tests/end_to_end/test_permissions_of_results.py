"""Permissions of results in every format: of the umask, or as a site wants them; sources keep theirs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import load_case, write_source
from tests.here import run_here

FORMATS: dict[str, dict[str, Any]] = {
    "hf": {"target_format": "hf", "shard_size": "20KB"},
    "megatron": {"layout__tp": 2},
    "dcp": {"target_format": "dcp"},
    "torch_dist": {"target_format": "torch_dist"},
}


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with a program beside it."""
    source = write_source(tmp_path / "source", load_case("qwen2vl__tp1_pp1"))
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o744)
    return source


def modes(directory: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.rglob("*"))}


def assert_modes(directory: Path, files: int, directories: int, programs: int) -> None:
    for path, found in modes(directory).items():
        expected = directories if path.is_dir() else programs if path.suffix == ".sh" else files
        assert oct(found) == oct(expected), path


@pytest.mark.parametrize("form", FORMATS)
def test_those_of_the_umask(form, source, tmp_path):
    before = modes(source)
    run_here(source=str(source), target=str(tmp_path / "deep" / "target"), **FORMATS[form])
    assert_modes(tmp_path / "deep", 0o640, 0o750, 0o750)
    assert modes(source) == before
    assert (tmp_path / "deep" / "target" / "run.sh").exists() == (form == "hf")


@pytest.mark.parametrize("form", FORMATS)
def test_those_that_are_asked_for(form, source, tmp_path):
    before = modes(source)
    asked = {"file_mode": "664", "dir_mode": "2775", **FORMATS[form]}
    run_here(source=str(source), target=str(tmp_path / "deep" / "target"), **asked)
    assert_modes(tmp_path / "deep", 0o664, 0o2775, 0o775)
    assert modes(source) == before
    # What was there keeps its own.
    (tmp_path / "there").mkdir()
    run_here(source=str(source), target=str(tmp_path / "there" / "target"), **asked)
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o750
