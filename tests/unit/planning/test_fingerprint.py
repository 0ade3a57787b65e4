"""What a job makes is described by what it is made from and how, and by nothing of the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distconv.formats.records import OutputFile
from distconv.formats.registry import Options
from distconv.planning.fingerprint import described
from distconv.tensors.stored import Header, Inode, SourceFile

FILE = SourceFile("/a/model.safetensors", 10, 17, Header(((0, 8),), "digest"), Inode("process", 1, 2))


def description(facts: Any = None, files: tuple[tuple[str, int], ...] = (("x.pt", 3),), **options: Any) -> Any:
    given = Options(**{"source": "/a", "target": "/b", **options})
    known = {"model": "qwen2vl", "definition": {"rules": 1}, "dialects": {}, "scaling": None, "looked_at": [FILE]}
    read = SimpleNamespace(**{**known, **(facts or {})}, directories=lambda given: {"source": given.source})
    plan = SimpleNamespace(files=[OutputFile(path=path, nbytes=size, order=(), batch=0) for path, size in files])
    return described(given, read, plan, "release")


def test_it_is_the_same_whoever_looks_and_however_the_job_runs():
    other = replace(FILE, inode=Inode("another", 3, 4))
    assert (
        description({"looked_at": [other]}, target="/c", io={"threads": 7}, patience=3, overwrite=True) == description()
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dtype": "float32"}, ["dtype: was not given, is float32"]),
        (
            {"layout": {"tp": 2, "stages": {"text": [1, 2]}}},
            ["layout.tp: was not given, is 2", "layout.stages.text: was"],
        ),
        ({"source": "/other"}, ["source: was /a, is /other"]),
        ({"facts": {"model": "internvl"}}, ["model: was qwen2vl, is internvl"]),
        ({"facts": {"definition": {"rules": 2}}}, ["the model definition, or a dialect, is another one"]),
        ({"facts": {"looked_at": [replace(FILE, mtime_ns=18)]}}, ["/a/model.safetensors is not the file that it was"]),
        ({"facts": {"looked_at": [replace(FILE, header=None)]}}, ["/a/model.safetensors is not the file that it was"]),
        ({"files": (("y.pt", 3),)}, ["the files of the result are others"]),
    ],
)
def test_what_shapes_the_result_is_in_it(change: dict[str, Any], told):
    found = description().differences(description(**change))
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True)), found


def test_a_relative_path_is_that_of_its_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert description(source="hf").directories == {"source": str(Path(tmp_path, "hf"))}
