"""One process's files are laid out, filled and made durable; what goes wrong names the file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from distconv.plan import OutputFile, Plan

from distconv import writing
from distconv.config import InputOutput
from distconv.errors import JobError
from distconv.sinks import Counters
from distconv.writing import write_files
from tests.unit.toy_files import START, expected, lay_out, planned

IO = InputOutput(fsync=True, threads=2, buffer_bytes=4096)


def written(plan: Plan, directory: Path, files: tuple[OutputFile, ...] | None = None, **changes: Any) -> dict[str, int]:
    options = {"must_stop": lambda: False, "lay_out": lay_out, "io": IO, **changes}
    io, must_stop, layer = options["io"], options["must_stop"], options["lay_out"]
    counters = Counters(lambda _: None)
    return write_files(plan, plan.files if files is None else files, directory, io, counters, must_stop, layer)


def test_files_hold_the_converted_tensors(tmp_path):
    plan = planned(tmp_path, tp=2, ep=2, stages={"text": ((1, 0), (1, 1))})
    (tmp_path / "out").mkdir()
    sizes = written(plan, tmp_path / "out")
    assert set(sizes) == {file.path for file in plan.files}
    for file in plan.files:
        content = (tmp_path / "out" / file.path).read_bytes()
        assert content == bytes(START) + expected(plan, file.path)
        assert sizes[file.path] == len(content)


def test_a_process_writes_its_own_files_only(tmp_path):
    plan = planned(tmp_path, tp=2)
    (tmp_path / "out").mkdir()
    assert list(written(plan, tmp_path / "out", plan.files[1:])) == ["mp_rank_01/model_optim_rng.pt"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mp_rank_01"]
    assert written(plan, tmp_path / "out", ()) == {}


@pytest.mark.parametrize("fsync", [True, False])
def test_files_are_made_durable_if_that_is_wished(tmp_path, fsync):
    plan = planned(tmp_path, tp=2)
    (tmp_path / "out").mkdir()
    with patch.object(writing, "synchronise", side_effect=lambda files: durable.extend(dict(files))):
        durable: list[str] = []
        written(plan, tmp_path / "out", io=replace(IO, fsync=fsync))
    assert sorted(durable) == ([str(tmp_path / "out" / file.path) for file in plan.files] if fsync else [])


def test_a_directory_that_another_machine_made_elsewhere_is_named(tmp_path):
    with pytest.raises(JobError, match=f"{tmp_path}/out: made by the first process, not seen here"):
        written(planned(tmp_path), tmp_path / "out")


def test_a_file_that_cannot_be_laid_out_is_named(tmp_path):
    (tmp_path / "out").mkdir()

    def full(*_: object) -> dict[tuple[str, str], int]:
        raise OSError(28, os.strerror(28))

    with pytest.raises(JobError, match=f"creating {tmp_path}/out/mp_rank_00/model_optim_rng.pt: No space left"):
        written(planned(tmp_path), tmp_path / "out", lay_out=full)


def test_what_cannot_be_made_durable_is_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        patch.object(writing, "synchronise", side_effect=OSError(5, "Input/output error")),
        pytest.raises(JobError, match=f"making {tmp_path}/out durable: Input/output error"),
    ):
        written(planned(tmp_path), tmp_path / "out")
