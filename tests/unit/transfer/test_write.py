"""One process's files are laid out, filled and made durable; what goes wrong names the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import pytest

from distconv.commit.journal import Finished, Journal, finished_in
from distconv.errors import JobError, SourceChangedError
from distconv.formats.frame import write_frame
from distconv.formats.megatron.plan import MegatronPlan
from distconv.formats.records import OutputFile, Written
from distconv.input_output import InputOutput
from distconv.runtime.identity import look_at
from distconv.tensors.stored import SourceFile
from distconv.transfer import write as writing
from distconv.transfer.crew import Crew, Portion
from distconv.transfer.means import Means
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from distconv.transfer.write import write_beside, write_files
from tests.unit.buffers import small_buffers
from tests.unit.toy_files import START, Unmarked, expected, planned

IO = InputOutput(fsync=True)


def written(
    plan: MegatronPlan, directory: Path, files: tuple[OutputFile, ...] | None = None, **changes: Any
) -> dict[str, Written]:
    options = {"must_stop": lambda: False, "io": IO, "form": Unmarked(plan.dictionaries), **changes}
    counters = Counters(lambda _: None)
    files = plan.files if files is None else files
    form, io, must_stop = options["form"], options["io"], options["must_stop"]
    with SourceFiles() as sources:
        means = Means(io=io, counters=counters, sources=sources, buffers=small_buffers(2), must_stop=must_stop)
        return write_files(plan, files, directory, form, means, Journal(directory.parent, 3, durable=io.fsync))


def beside(directory: Path, files: Mapping[str, bytes | SourceFile], *, durable: bool) -> dict[str, Written]:
    with SourceFiles() as sources:
        return write_beside(directory, files, sources, replace(IO, fsync=durable))


def test_files_hold_the_converted_tensors(tmp_path):
    plan = planned(tmp_path, tp=2, ep=2, stages={"text": ((1, 0), (1, 1))})
    (tmp_path / "out").mkdir()
    done = written(plan, tmp_path / "out")
    assert set(done) == {file.path for file in plan.files}
    for file in plan.files:
        content = (tmp_path / "out" / file.path).read_bytes()
        assert content == bytes(START) + expected(plan, file.path)
        assert done[file.path] == (len(content), crc32(content))


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
    with (
        patch.object(writing, "write_frame", side_effect=OSError(28, os.strerror(28))),
        pytest.raises(JobError, match=f"creating {tmp_path}/out/mp_rank_00/model_optim_rng.pt: No space left"),
    ):
        written(planned(tmp_path), tmp_path / "out")


def test_what_cannot_be_made_durable_is_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        patch.object(writing, "synchronise", side_effect=OSError(5, "Input/output error")),
        pytest.raises(JobError, match=f"making {tmp_path}/out durable: Input/output error"),
    ):
        written(planned(tmp_path), tmp_path / "out")


def test_without_checksums_none_are_computed_and_files_are_the_same(tmp_path):
    plan = planned(tmp_path, tp=2)
    contents = []
    for name, checksum in (("with", True), ("without", False)):
        (tmp_path / name / "out").mkdir(parents=True)
        done = written(plan, tmp_path / name / "out", io=replace(IO, checksum=checksum))
        assert all((each.checksum is not None) == checksum for each in done.values())
        contents.append({path: (tmp_path / name / "out" / path).read_bytes() for path in done})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("fsync", [True, False])
def test_files_that_are_finished_are_in_the_journal(tmp_path, fsync):
    plan = planned(tmp_path, tp=2)
    (tmp_path / "out").mkdir()
    done = written(plan, tmp_path / "out", io=replace(IO, fsync=fsync))
    assert finished_in(tmp_path) == {path: Finished(written=each, durable=fsync) for path, each in done.items()}


def test_a_file_that_is_not_finished_is_in_no_journal(tmp_path):
    """Two batches are under way at a time, so the first is finished when the third fails."""
    plan = planned(tmp_path, tp=2, stages={"text": ((1, 1, 1),)})
    (tmp_path / "out").mkdir()
    first, *_, last = sorted({file.batch for file in plan.files})
    later = {str(tmp_path / "out" / file.path) for file in plan.files if file.batch == last}

    def write(path: Path, *rest: Any) -> None:
        if str(path) in later:
            raise OSError(5, "Input/output error")
        write_frame(path, *rest)

    with patch.object(writing, "write_frame", write), pytest.raises(JobError, match="creating"):
        written(plan, tmp_path / "out")
    assert later
    assert finished_in(tmp_path).keys() == {file.path for file in plan.files if file.batch == first}


@pytest.mark.parametrize(("most", "order"), [(2, "12c3cc"), (1, "1c2c3c")])
def test_the_next_batch_is_begun_before_the_last_one_is_finished_unless_too_many_files_were_open(tmp_path, most, order):
    plan = planned(tmp_path, tp=2, stages={"text": ((1, 1, 1),)})
    (tmp_path / "out").mkdir()
    seen: list[str] = []
    begin, close = Crew.begin, writing._close

    def begun(crew: Crew, *given: Any) -> Portion:
        seen.append(str(1 + len(seen) - seen.count("c")))
        return begin(crew, *given)

    def closed(*given: Any) -> None:
        seen.append("c")
        close(*given)

    with (
        patch.object(writing, "_MOST_OPEN", most),
        patch.object(Crew, "begin", begun),
        patch.object(writing, "_close", closed),
    ):
        written(plan, tmp_path / "out")
    assert "".join(seen) == order


def test_files_beside_the_tensors_are_written_or_copied_and_made_durable(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "original").write_bytes(b"copied")
    made = {"text.json": b"made", "sub/copy": look_at(tmp_path / "original")}
    with patch.object(writing, "synchronise", side_effect=lambda files: durable.extend(dict(files))):
        durable: list[str] = []
        done = beside(tmp_path / "out", made, durable=True)
    assert done == {"text.json": (4, crc32(b"made")), "sub/copy": (6, crc32(b"copied"))}
    assert sorted(durable) == sorted(str(tmp_path / "out" / name) for name in made)
    assert (tmp_path / "out" / "text.json").read_bytes() == b"made"
    assert (tmp_path / "out" / "sub" / "copy").read_bytes() == b"copied"


def test_what_need_not_be_durable_is_not_and_there_may_be_nothing_beside(tmp_path):
    with patch.object(writing, "synchronise", side_effect=AssertionError):
        assert beside(tmp_path, {}, durable=False) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_file_beside_the_tensors_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "none").write_bytes(b"")
    with pytest.raises(JobError, match=f"finishing {tmp_path}/none: File exists"):
        beside(tmp_path / "none", {"details": b""}, durable=True)
    with pytest.raises(JobError, match=f"finishing {tmp_path}/gone: No such file"):
        beside(tmp_path, {"details": SourceFile(str(tmp_path / "gone"), 0)}, durable=True)


def test_a_file_that_changes_before_or_while_it_is_copied_is_named(tmp_path):
    (tmp_path / "side.json").write_bytes(b"first")
    file = look_at(tmp_path / "side.json")
    os.utime(tmp_path / "side.json", ns=(1, 1))
    with pytest.raises(SourceChangedError, match=f"{tmp_path}/side.json: was modified at "):
        beside(tmp_path, {"copy": file}, durable=False)
    file = look_at(tmp_path / "side.json")

    def changing(source: str) -> bool:
        os.utime(source, ns=(2, 2))
        return False

    with patch.object(writing, "is_executable", changing), pytest.raises(SourceChangedError, match="was modified at "):
        beside(tmp_path, {"copy": file}, durable=False)
