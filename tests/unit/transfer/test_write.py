"""One process's files are laid out, filled and made durable; what goes wrong names the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from distconv.errors import JobError
from distconv.formats.base import Created
from distconv.formats.jsonfile import read_object
from distconv.formats.megatron.plan import MegatronPlan
from distconv.formats.provenance import Provenance
from distconv.formats.records import OutputFile
from distconv.transfer import write as writing
from distconv.transfer.sinks import Counters
from distconv.transfer.write import Written, finish, write_files
from tests.unit.buffers import SmallBuffers
from tests.unit.toy_files import START, Unmarked, expected, planned

IO = SmallBuffers(fsync=True, threads=2, buffer_bytes=4096)


class WithMetadata(Unmarked):
    """Beside its files such a result has one that says what became of them."""

    def finish(self, directory: Path, details: Mapping[str, Any]) -> Mapping[str, int]:
        return {"details": (directory / "details").write_text(str(sorted(details.values())))}


def written(
    plan: MegatronPlan, directory: Path, files: tuple[OutputFile, ...] | None = None, **changes: Any
) -> dict[str, int]:
    return _written(plan, directory, files, **{"form": Unmarked(plan.dictionaries), **changes}).sizes


def _written(
    plan: MegatronPlan, directory: Path, files: tuple[OutputFile, ...] | None = None, **changes: Any
) -> Written:
    options = {"must_stop": lambda: False, "io": IO, **changes}
    counters = Counters(lambda _: None)
    files = plan.files if files is None else files
    return write_files(plan, files, directory, options["form"], options["io"], counters, options["must_stop"])


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

    class Full(Unmarked):
        def create(self, *_: object) -> Created:
            raise OSError(28, os.strerror(28))

    with pytest.raises(JobError, match=f"creating {tmp_path}/out/mp_rank_00/model_optim_rng.pt: No space left"):
        written(planned(tmp_path), tmp_path / "out", form=Full([]))


def test_what_cannot_be_made_durable_is_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        patch.object(writing, "synchronise", side_effect=OSError(5, "Input/output error")),
        pytest.raises(JobError, match=f"making {tmp_path}/out durable: Input/output error"),
    ):
        written(planned(tmp_path), tmp_path / "out")


def test_what_the_format_and_the_record_add_is_a_part_of_the_result(tmp_path):
    plan = planned(tmp_path, tp=2)
    (tmp_path / "out").mkdir()
    form = WithMetadata(plan.dictionaries)
    found = _written(plan, tmp_path / "out", form=form)
    assert {path: details[0] for path, details in found.details.items()} == {
        file.path: file.path for file in plan.files
    }
    before = set(found.sizes)
    with patch.object(writing, "synchronise", side_effect=lambda files: durable.extend(dict(files))):
        durable: list[str] = []
        finish(found, tmp_path / "out", form, Provenance(model="toy", reference="/hf"), durable=True)
    assert found.sizes.keys() - before == {"details", "distconv.json"}
    assert sorted(durable) == [str(tmp_path / "out" / name) for name in ("details", "distconv.json")]
    for name in ("details", "distconv.json"):
        assert found.sizes[name] == (tmp_path / "out" / name).stat().st_size
    assert all(file.path in (tmp_path / "out" / "details").read_text() for file in plan.files)
    assert read_object(tmp_path / "out" / "distconv.json", "") == {"model": "toy", "reference": "/hf"}


def test_what_need_not_be_durable_is_not_and_a_result_may_have_no_record(tmp_path):
    with patch.object(writing, "synchronise", side_effect=AssertionError):
        finish(Written(sizes={}, details={}), tmp_path, Unmarked([]), None, durable=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_beside_the_tensors_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(JobError, match=f"finishing {tmp_path}/none/details: No such file"):
        finish(Written(sizes={}, details={}), tmp_path / "none", WithMetadata([]), None, durable=True)
