"""Several processes write one file only where each of them sees that this is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distconv import writing
from distconv.formats.records import OutputFile
from distconv.input_output import InputOutput
from distconv.writing import may_share
from tests.configuration import job
from tests.unit.threads import ThreadProcesses, as_processes

FILES = [OutputFile(path="model.safetensors", nbytes=1, order=(0,), batch=0)]


def answers(seen: list[bool], monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[bool]:
    """What processes find, of which each sees for itself whether its directory keeps writers apart."""

    def may_be_shared(directory: Path, _: InputOutput) -> bool:
        return seen[int(directory.name)]

    monkeypatch.setattr(writing, "may_be_shared", may_be_shared)
    given = job(target_format="hf", **options)
    return as_processes(len(seen), lambda own: may_share(given, FILES, Path(str(own.rank)), own))


def test_all_agree(monkeypatch):
    """As on the host of an export, with clients of it on others."""
    assert answers([True, True, True], monkeypatch) == [True] * 3
    assert answers([True, False, True], monkeypatch) == [False] * 3
    assert answers([False, True, True], monkeypatch) == [False] * 3


def test_nobody_is_asked_where_it_does_not_help(monkeypatch):
    monkeypatch.setattr(ThreadProcesses, "collect", None)
    assert answers([True], monkeypatch) == [False]
    assert answers([True, True], monkeypatch, io__shared_files=False) == [False] * 2
