"""What a job had finished is continued by the same command, refused to another, and lost to nobody."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distconv.commit.journal import Description, Finished, Journal, finished_in
from distconv.commit.recovery import clean, leftovers
from distconv.commit.staging import Staging
from distconv.errors import InputError, JobError, SpoiledError
from distconv.formats.records import Written
from tests.unit.commit.targets import FILE, JOB, committed, plant, put, result, target, tree

DONE = {FILE: Finished(written=Written(3, 17), durable=False)}
REFUSED = (
    r"release: 1 finished file of it in .*/\.distconv-[0-9a-f]{8} cannot be continued: {what}; give the same command "
    r"as before, or remove what is left with action=clean"
)


def ended(
    directory: Path, error: BaseException | None, *, finished: bool = True, description: Description = JOB
) -> Any:
    """A job that wrote one file and a part of another, and came to this end, or was killed; what it told."""
    told: list[str] = []
    staging = Staging(target(directory), tell=told.append)
    staging.claim(description, overwrite=False)
    plant(staging.begin(durable=False), {**result("new"), "part": "par"})
    if finished:
        Journal(staging.path.parent, 0, durable=False).add(DONE)
    if error is None:
        staging._lock.release()
        return told
    with pytest.raises(type(error)) as caught, staging:
        raise error
    return [*told, *map(str, caught.value.args)]


def works(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.name.startswith(".distconv-")]


KEPT = "is left of a job that did not end, with 1 finished file: the same command continues it, action=clean removes it"


@pytest.mark.parametrize(
    "error", [JobError("failed"), KeyboardInterrupt(), OSError(errno.EIO, "broken"), ValueError("a defect"), None]
)
def test_what_is_finished_is_kept_after_any_end_and_continued(tmp_path, error):
    told = ended(tmp_path, error)
    (work,) = works(tmp_path)
    if error is not None:
        assert any(f"release is as it was; {work} {KEPT}" in each for each in told)
    assert [str(each) for each in leftovers(tmp_path)] == [f"{work} {KEPT}"]
    staging = Staging(target(tmp_path))
    staging.claim(JOB, overwrite=False)
    assert staging.finished == DONE
    (now,) = works(tmp_path)
    assert now != work
    assert tree(staging.begin(durable=False)) == result("new")
    staging.commit({FILE: 3}, durable=False)
    staging.close()
    assert tree(tmp_path) == committed("new")


@pytest.mark.parametrize("error", [JobError("failed"), KeyboardInterrupt(), None])
def test_where_nothing_is_finished_nothing_is_kept(tmp_path, error):
    ended(tmp_path, error, finished=False)
    assert len(works(tmp_path)) == (error is None)
    told: list[str] = []
    staging = Staging(target(tmp_path), tell=told.append)
    staging.claim(JOB, overwrite=False)
    assert (staging.finished, works(tmp_path), told) == ({}, [], [])
    staging.close()
    assert tree(tmp_path) == {}


def test_what_does_not_say_what_it_is_is_worth_nothing(tmp_path):
    """As what a commit leaves that is complete: it may hold the older result."""
    ended(tmp_path, None)
    (work,) = works(tmp_path)
    (work / "job.json").unlink()
    staging = Staging(target(tmp_path))
    staging.claim(JOB, overwrite=False)
    assert (staging.finished, works(tmp_path)) == ({}, [])
    staging.close()


def test_what_can_be_no_part_of_a_result_is_not_kept(tmp_path):
    assert ended(tmp_path, SpoiledError("the source has changed")) == ["the source has changed"]
    assert tree(tmp_path) == {}


def test_another_job_is_refused_and_told_what_differs(tmp_path):
    ended(tmp_path, None, description=replace(JOB, options={"dtype": "float16"}))
    before = tree(tmp_path)
    what = "distconv was 1, is 2; dtype: was float16, is not given"
    for description, expected in ((JOB, what.partition("; ")[2]), (replace(JOB, version="2"), what)):
        refused = pytest.raises(InputError, match=REFUSED.replace("{what}", expected))
        with refused, Staging(target(tmp_path)) as staging:
            staging.claim(description, overwrite=False)
        assert tree(tmp_path) == before


def test_after_cleaning_anything_may_be_made(tmp_path):
    ended(tmp_path, None, description=replace(JOB, files="others"))
    assert len(clean(tmp_path).removed) == 1
    put(target(tmp_path), "new")
    assert tree(tmp_path) == committed("new")


def test_another_result_beside_it_is_made_and_what_is_left_is_told(tmp_path):
    ended(tmp_path, None, description=replace(JOB, result="iter_0000010"))
    (work,) = works(tmp_path)
    told: list[str] = []
    staging = Staging(target(tmp_path), tell=told.append)
    staging.claim(JOB, overwrite=False)
    staging.close()
    assert told == [f"{work} {KEPT}"]
    assert works(tmp_path) == [work]


def test_of_several_the_one_with_most_is_continued(tmp_path):
    for number in range(2):
        work = tmp_path / f".distconv-0000000{number}"
        (work / "new").mkdir(parents=True)
        staging = Staging(target(tmp_path / "other"))
        staging.claim(JOB, overwrite=False)
        described = staging.begin(durable=False).parent / "job.json"
        (work / "job.json").write_bytes(described.read_bytes())
        staging.close()
        Journal(work, 0, durable=False).add({str(name): DONE[FILE] for name in range(number + 1)})
    told: list[str] = []
    staging = Staging(target(tmp_path), tell=told.append)
    staging.claim(JOB, overwrite=False)
    assert len(staging.finished) == 2
    assert told == [f"{tmp_path}/.distconv-00000000 {KEPT}"]
    staging.close()
    assert sorted(len(finished_in(work)) for work in works(tmp_path)) == [1, 2]


def test_what_is_continued_is_kept_again(tmp_path):
    ended(tmp_path, None)
    for _ in range(3):
        with contextlib.suppress(JobError), Staging(target(tmp_path)) as staging:
            staging.claim(JOB, overwrite=False)
            assert staging.finished == DONE
            raise JobError("again")
    assert len(works(tmp_path)) == 1


def test_one_that_cannot_be_taken_over_is_refused_and_stays(tmp_path, monkeypatch):
    ended(tmp_path, None)
    before = tree(tmp_path)
    rename = os.rename

    def failing(old: Path, new: Path) -> None:
        if Path(old).name.startswith(".distconv-"):
            raise OSError(errno.EACCES, "Permission denied", str(old))
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(InputError, match="cannot be written: Permission denied"), Staging(target(tmp_path)) as staging:
        staging.claim(JOB, overwrite=False)
    assert tree(tmp_path) == before
