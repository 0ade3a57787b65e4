"""What killed jobs left is listed and removed, what is running never is, and nothing else is touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from distconv.commit import recovery
from distconv.commit import swap as swap_module
from distconv.commit.recovery import Leftover, check_settled, clean, leftovers, recover
from distconv.commit.swap import prepare
from distconv.commit.target import Target
from distconv.errors import InputError
from tests.unit.commit.targets import TRACKER, committed, plant, put, result, staged, target, tree

DIGITS = "0123abcd"


def killed(found: Target) -> Path:
    """The directory of work of a job that was killed while it wrote."""
    work = found.area.work(DIGITS)
    plant(work / "new", result("killed"))
    return work


def between_renames(directory: Path) -> Path:
    """The directory of work of a job that was killed between the renames of its commit."""
    plant(directory, {**committed("old"), TRACKER: "10"})
    work = killed(target(directory))
    prepare(work, "release", "release", durable=False)
    os.rename(directory / "release", work / "replaced")
    return work


def after_commit(directory: Path) -> Path:
    """The directory of work of a job that was killed before it removed what it had replaced."""
    plant(directory, committed("old"))
    work = killed(target(directory))
    prepare(work, "release", "release", durable=False).publish(durable=False)
    return work


def test_nothing_is_left_where_nothing_was_killed(tmp_path):
    put(target(tmp_path), "new")
    assert leftovers(tmp_path) == []
    assert clean(tmp_path) == recovery.Cleaned(removed=(), kept=(), notes=())
    assert leftovers(tmp_path / "none") == []
    assert tree(tmp_path) == committed("new")


def test_what_was_killed_while_it_wrote_is_listed_and_removed(tmp_path):
    plant(tmp_path, committed("old"))
    work = killed(target(tmp_path))
    (work / "new" / "more").write_bytes(bytes(1000))
    (work / "new" / "link").symlink_to(tmp_path)
    (left,) = leftovers(tmp_path)
    assert left == Leftover(path=work, nbytes=len("killed") + 1000, running=False, unfinished=False, finished=0)
    assert clean(tmp_path) == recovery.Cleaned(removed=(left,), kept=(), notes=())
    assert tree(tmp_path) == committed("old")


def test_what_is_left_beside_a_result_and_below_a_directory_of_results_is_found(tmp_path):
    work = killed(target(tmp_path / "hf", None))
    (tmp_path / "hf").mkdir()
    (tmp_path / "link").symlink_to("hf")
    for directory in (tmp_path / "hf", tmp_path / "link", tmp_path):
        assert [each.path for each in leftovers(directory)] == [work], directory
    assert leftovers(tmp_path / "hf-2") == []
    clean(tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir() if path.name != "link"] == ["hf"]


def test_what_runs_is_listed_and_stays(tmp_path):
    job, files = staged(target(tmp_path))
    dead = killed(target(tmp_path))
    found = {each.path: each.running for each in leftovers(tmp_path)}
    assert found == {dead: False, job.path.parent: True}
    done = clean(tmp_path)
    assert [each.path for each in done.removed] == [dead]
    assert [each.path for each in done.kept] == [job.path.parent]
    job.commit(files, durable=False)
    job.close()
    assert tree(tmp_path) == committed("new")


def test_a_job_that_has_not_begun_to_write_runs_too(tmp_path):
    job, _ = staged(target(tmp_path))
    recovery.remove(job.path.parent)
    (left,) = leftovers(tmp_path)
    assert (left.path, left.running) == (tmp_path / ".distconv.lock", True)
    assert clean(tmp_path).kept == (left,)
    job.close()


def test_a_lock_that_was_left_is_removed_with_its_directory(tmp_path):
    plant(tmp_path, {".distconv.lock": "of a dead process"})
    (left,) = leftovers(tmp_path)
    assert (left.path, left.running) == (tmp_path / ".distconv.lock", False)
    assert clean(tmp_path).removed == (left,)
    assert tree(tmp_path) == {}


def test_a_directory_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "listdir", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied", "here")))
    for look in (leftovers, clean, lambda directory: check_settled(target(directory))):
        with pytest.raises(InputError, match=f"target={tmp_path}: cannot be read: Permission denied: here"):
            look(tmp_path)


def test_of_a_holder_that_is_not_known_everything_may_be(tmp_path, monkeypatch):
    killed(target(tmp_path))
    (tmp_path / ".distconv.lock").touch()
    before = tree(tmp_path)
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "")))
    assert [each.running for each in leftovers(tmp_path)] == [True]
    assert clean(tmp_path).removed == ()
    assert tree(tmp_path) == before


def test_an_unfinished_commit_is_taken_back_before_the_rest_is_removed(tmp_path):
    work = between_renames(tmp_path)
    (left,) = leftovers(tmp_path)
    assert (left.path, left.running, left.unfinished) == (work, False, True)
    done = clean(tmp_path)
    assert done.removed == (left,)
    assert done.notes == (f"a job was killed while it put {tmp_path}/release in place: that has been taken back",)
    assert tree(tmp_path) == {**committed("old"), TRACKER: "10"}


def test_what_was_replaced_is_removed(tmp_path):
    work = after_commit(tmp_path)
    (left,) = leftovers(tmp_path)
    assert (left.path, left.unfinished) == (work, False)
    assert clean(tmp_path).removed == (left,)
    assert tree(tmp_path) == committed("killed")


def test_an_unfinished_commit_waits_for_whoever_has_the_lock(tmp_path):
    """Who took it is concluding that commit, and must not be helped."""
    job, _ = staged(target(tmp_path))
    work = between_renames(tmp_path)
    before = tree(tmp_path)
    assert [each.path for each in clean(tmp_path).kept] == [work, job.path.parent]
    assert tree(tmp_path) == before
    job.close()


def test_what_people_must_decide_stays_and_is_told(tmp_path):
    work = between_renames(tmp_path)
    plant(tmp_path, committed("somebody's"))
    before = tree(tmp_path)
    done = clean(tmp_path)
    assert [each.path for each in done.kept] == [work]
    assert "somebody has changed that since" in done.notes[0]
    assert tree(tmp_path) == before


def test_what_cannot_be_taken_back_yet_stays_and_is_told(tmp_path, monkeypatch):
    work = between_renames(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device", "here")
    monkeypatch.setattr(swap_module.os, "rename", Mock(side_effect=full))
    with pytest.raises(
        InputError, match=f"{work}: a job was killed .* cannot be taken back: No space left on device: "
    ):
        recover(work)
    assert [each.path for each in clean(tmp_path).kept] == [work]


def test_a_directory_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    work = killed(target(tmp_path))
    monkeypatch.setattr(recovery, "take", Mock(side_effect=OSError(errno.EROFS, "Read-only file system", "lock")))
    done = clean(tmp_path)
    assert done.notes == (f"{tmp_path}: cannot be cleaned: Read-only file system: lock",)
    assert [each.path for each in done.kept] == [work]


def test_what_is_not_a_jobs_is_no_leftover(tmp_path):
    mine = {
        ".distconv/notes.txt": "mine",
        ".distconv-notes/": "",
        ".distconv-0123abcd": "a file",
        ".distconv-0123abcde/": "",
        ".distconv-x-0123ABCD/": "",
        ".distconvert-0123abcd/": "",
        ".distconv.lock.txt": "mine",
        "distconv-0123abcd/": "",
    }
    plant(tmp_path, mine)
    (tmp_path / ".distconv-01234567").symlink_to(tmp_path / ".distconv-notes")
    before = tree(tmp_path)
    assert leftovers(tmp_path) == []
    clean(tmp_path)
    assert tree(tmp_path) == before


def test_a_target_is_settled_unless_a_commit_is_unfinished(tmp_path):
    check_settled(target(tmp_path / "none"))
    killed(target(tmp_path / "a"))
    check_settled(target(tmp_path / "a"))
    after_commit(tmp_path / "b")
    check_settled(target(tmp_path / "b"))
    work = between_renames(tmp_path / "c")
    with pytest.raises(
        InputError, match=f"target={tmp_path}/c: a job was killed while it put release in place, .*{work}"
    ):
        check_settled(target(tmp_path / "c"))
    (work / "commit.json").write_text("")
    with pytest.raises(InputError, match=f"target={tmp_path}/c: a job was killed"):
        check_settled(target(tmp_path / "c"))
