"""Nothing looks finished before the commit, the tracker comes last, and a job that fails leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from distconv.errors import InputError, JobError
from distconv.transfer import commit
from distconv.transfer.commit import Staging, Target, check_absent, check_target, leftovers

TRACKER = "latest_checkpointed_iteration.txt"


def target(directory: Path, iteration: str = "release") -> Target:
    return Target(directory=directory, iteration=iteration)


def tree(directory: Path) -> dict[str, str]:
    """The files below a directory with their contents; directories end in a slash."""
    return {
        f"{path.relative_to(directory)}{'/' * path.is_dir()}": "" if path.is_dir() else path.read_text()
        for path in sorted(directory.rglob("*"))
    }


def staged(found: Target, text: str = "new") -> tuple[Staging, dict[str, int]]:
    """A staging directory with one file in it, and what its writer says of it."""
    staging = Staging(found)
    (staging.path / "mp_rank_00").mkdir()
    (staging.path / "mp_rank_00" / "file.pt").write_text(text)
    return staging, {"mp_rank_00/file.pt": len(text)}


def committed(text: str) -> dict[str, str]:
    return {"release/": "", "release/mp_rank_00/": "", "release/mp_rank_00/file.pt": text, TRACKER: "release"}


@pytest.fixture(params=[True, False], ids=["durable", "fast"])
def durable(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_a_result_is_in_a_hidden_directory_until_it_is_committed(tmp_path, durable):
    staging, files = staged(target(tmp_path))
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith(".distconv-")
    assert staging.path == hidden / "release"
    staging.commit(files, durable=durable)
    assert tree(tmp_path) == committed("new")


def test_missing_directories_are_made_and_kept_by_the_commit(tmp_path, durable):
    staging, files = staged(target(tmp_path / "a" / "b"))
    staging.commit(files, durable=durable)
    staging.discard()
    assert tree(tmp_path / "a" / "b") == committed("new")


def test_a_target_may_be_relative(tmp_path, monkeypatch, durable):
    monkeypatch.chdir(tmp_path)
    staging, files = staged(target(Path("a/b")))
    staging.commit(files, durable=durable)
    assert tree(tmp_path / "a" / "b") == committed("new")


def test_an_older_result_stays_until_the_commit_replaces_it(tmp_path, durable):
    first, files = staged(target(tmp_path), "old and longer")
    first.commit(files, durable=durable)
    (tmp_path / "release" / "stray.pt").write_text("of the old result")
    second, files = staged(target(tmp_path))
    visible = {name: text for name, text in tree(tmp_path).items() if not name.startswith(".")}
    assert visible == {**committed("old and longer"), "release/stray.pt": "of the old result"}
    second.commit(files, durable=durable)
    assert tree(tmp_path) == committed("new")


def test_other_iterations_and_files_are_left_alone(tmp_path, durable):
    (tmp_path / "iter_0000010").mkdir()
    (tmp_path / "iter_0000010" / "x").write_text("training")
    (tmp_path / TRACKER).write_text("10")
    staging, files = staged(target(tmp_path))
    staging.commit(files, durable=durable)
    assert tree(tmp_path) == {"iter_0000010/": "", "iter_0000010/x": "training", **committed("new")}


@pytest.mark.parametrize(("said", "found"), [(4, "finds 3"), (2, "finds 3")])
def test_a_file_of_another_size_than_its_writer_left_is_not_committed(tmp_path, said, found):
    staging, _ = staged(target(tmp_path))
    with pytest.raises(
        JobError, match=rf"file\.pt: its writer left {said} bytes, the first process {found}; target must"
    ):
        staging.commit({"mp_rank_00/file.pt": said}, durable=False)
    assert not (tmp_path / "release").exists()


def test_a_file_that_the_first_process_does_not_see_is_not_committed(tmp_path):
    staging, files = staged(target(tmp_path))
    with pytest.raises(
        JobError, match=r"mp_rank_01/file\.pt: its writer left 3 bytes, the first process finds no file"
    ):
        staging.commit({**files, "mp_rank_01/file.pt": 3}, durable=False)
    assert not (tmp_path / "release").exists()


def test_a_durable_commit_makes_each_step_durable_before_the_next(tmp_path, monkeypatch):
    seen: list[tuple[str, list[str]]] = []

    def look(what: str) -> None:
        seen.append((what, sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))))

    real_fsync = os.fsync
    monkeypatch.setattr(commit, "synchronise_directory", lambda path: look(Path(path).name))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (look("tracker"), real_fsync(descriptor)))
    staging, files = staged(target(tmp_path))
    staging.commit(files, durable=True)
    assert seen == [
        ("release", []),
        ("tracker", ["release"]),
        (tmp_path.name, ["release"]),
        (tmp_path.name, [TRACKER, "release"]),
    ]


def test_a_durable_commit_makes_the_names_of_new_directories_durable(tmp_path, monkeypatch):
    synchronised: set[str] = set()
    monkeypatch.setattr(commit, "synchronise_directory", lambda path: synchronised.add(str(path)))
    staging, files = staged(target(tmp_path / "a" / "b"))
    staging.commit(files, durable=True)
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= synchronised


def test_discarding_removes_everything_that_the_job_made(tmp_path):
    (tmp_path / "mine").write_text("")
    staging, _ = staged(target(tmp_path / "a" / "b" / "c"))
    staging.discard()
    assert tree(tmp_path) == {"mine": ""}


def test_discarding_leaves_what_was_there(tmp_path):
    first, files = staged(target(tmp_path), "old")
    first.commit(files, durable=False)
    second, _ = staged(target(tmp_path))
    second.discard()
    assert tree(tmp_path) == committed("old")


def test_discarding_leaves_a_new_directory_that_someone_else_uses_by_now(tmp_path):
    staging, _ = staged(target(tmp_path / "a" / "b"))
    (tmp_path / "a" / "other").write_text("")
    staging.discard()
    assert tree(tmp_path) == {"a/": "", "a/other": ""}


def test_discarding_twice_or_after_the_commit_does_nothing_more(tmp_path):
    staging, files = staged(target(tmp_path / "a"))
    staging.commit(files, durable=False)
    staging.discard()
    assert tree(tmp_path / "a") == committed("new")
    other, _ = staged(target(tmp_path / "b"))
    other.discard()
    other.discard()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("old", [{}, committed("old")], ids=["fresh", "overwrite"])
def test_a_commit_that_fails_at_the_tracker_is_taken_back(tmp_path, monkeypatch, old):
    if old:
        first, files = staged(target(tmp_path), "old")
        first.commit(files, durable=False)
    staging, files = staged(target(tmp_path))
    rename = Path.rename

    def full(path: Path, to: Path) -> Path:
        if path.name == TRACKER:
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(JobError, match=r"could not be put in place: No space left on device"):
        staging.commit(files, durable=False)
    staging.discard()
    assert tree(tmp_path) == old


def test_an_older_result_is_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    first, files = staged(target(tmp_path), "old")
    first.commit(files, durable=False)
    staging, files = staged(target(tmp_path))
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if path == staging.path:
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(JobError, match=r"could not be put in place: No space left on device"):
        staging.commit(files, durable=False)
    staging.discard()
    assert tree(tmp_path) == committed("old")


OTHER_ITERATION = {"iter_0000010/": "", "iter_0000010/x": "training", TRACKER: "10"}


@pytest.mark.parametrize("old", [{}, OTHER_ITERATION], ids=["fresh", "beside another iteration"])
def test_a_commit_that_cannot_be_made_durable_is_taken_back(tmp_path, monkeypatch, old):
    """Whichever of the directories cannot be synchronised."""
    for failing in range(3):
        directory = tmp_path / f"mm{failing}"
        for name, text in old.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if name.endswith("/") else path.write_text(text)
        staging, files = staged(target(directory))
        outcomes = [None] * failing + [OSError(5, "Input/output error")]
        if not old:
            # Of a new directory its parent is synchronised, too.
            outcomes = [None, *outcomes]
        monkeypatch.setattr(commit, "synchronise_directory", Mock(side_effect=outcomes))
        with pytest.raises(JobError, match="could not be put in place: Input/output error"):
            staging.commit(files, durable=True)
        staging.discard()
        assert (tree(directory) if directory.exists() else {}) == old


def test_staging_directories_of_two_jobs_do_not_meet(tmp_path):
    one, _ = staged(target(tmp_path))
    other, _ = staged(target(tmp_path))
    assert one.path != other.path
    assert leftovers(target(tmp_path)) == sorted([one.path.parent, other.path.parent])
    one.discard()
    assert leftovers(target(tmp_path)) == [other.path.parent]


def test_a_target_that_cannot_be_made_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"target={tmp_path}/file/a: cannot be written"):
        Staging(target(tmp_path / "file" / "a"))
    assert tree(tmp_path) == {"file": ""}


def check(directory: Path, *, overwrite: bool = False, needed: int = 1, **sources: Path) -> None:
    check_target(target(directory), sources, overwrite=overwrite, needed=needed)


def test_a_target_that_can_be_written_is_not_touched(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    for directory in (tmp_path / "target", tmp_path / "new" / "deeper", tmp_path / "source-2"):
        check(directory, source=tmp_path / "source")
    assert tree(tmp_path) == {"source/": "", "target/": ""}


def test_a_source_may_lie_in_the_target_directory_but_not_in_the_result(tmp_path):
    check(tmp_path, source=tmp_path / "hf")
    check(tmp_path, source=tmp_path / "release-hf")
    with pytest.raises(
        InputError, match=f"text_source={tmp_path}/release/hf: is inside {tmp_path}/release, which this"
    ):
        check(tmp_path, source=tmp_path / "hf", text_source=tmp_path / "release" / "hf")


@pytest.mark.parametrize(
    ("prepare", "directory", "message"),
    [
        (None, "source", "is inside source={tmp}/source; choose a directory outside of it"),
        (None, "source/deep/er", "is inside source={tmp}/source"),
        (lambda tmp: (tmp / "link").symlink_to(tmp / "source"), "link/a", "is inside source={tmp}/source"),
        (lambda tmp: (tmp / "file").touch(), "file", "exists and is not a directory"),
        (lambda tmp: (tmp / "file").touch(), "file/a/b", "{tmp}/file is not a directory"),
        (lambda tmp: (tmp / "mm" / "release").mkdir(parents=True), "mm", "release is already there; choose another"),
        (lambda tmp: _touch(tmp / "mm" / TRACKER), "mm", f"{TRACKER} is already there; choose another"),
    ],
)
def test_a_target_that_will_not_do_is_refused(tmp_path, prepare: Callable[[Path], Any] | None, directory, message):
    (tmp_path / "source").mkdir()
    if prepare is not None:
        prepare(tmp_path)
    with pytest.raises(InputError) as caught:
        check(tmp_path / directory, source=tmp_path / "source")
    assert str(caught.value).startswith(f"target={tmp_path / directory}: {message.format(tmp=tmp_path)}")


def _touch(path: Path) -> None:
    path.parent.mkdir()
    path.touch()


def test_an_existing_result_may_be_overwritten_if_that_is_wanted(tmp_path):
    (tmp_path / "release").mkdir()
    (tmp_path / TRACKER).write_text("release")
    check(tmp_path, overwrite=True)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", None])
def test_only_a_directory_that_is_a_result_is_overwritten_as_a_whole(tmp_path, name):
    found = Target(directory=tmp_path / "hf", iteration=None, marks=("config.json", "adapter_config.json"))
    found.directory.mkdir()
    if name is not None:
        (found.directory / "thesis.txt").touch()
        with pytest.raises(InputError, match=f"target={found.directory}: .* it is no result, and all that is in it"):
            check_target(found, {}, overwrite=True, needed=1)
        (found.directory / name).touch()
    check_target(found, {}, overwrite=True, needed=1)


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(
        InputError, match=r"needs 4,611,686,018,427,387,904 bytes, but only [\d,]+ are free on its file"
    ):
        check(tmp_path / "new", needed=2**62)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    with pytest.raises(InputError, match=f"target={tmp_path}/a/b: no permission to write in {tmp_path}"):
        check(tmp_path / "a" / "b")


@pytest.mark.parametrize("there", ["release/mp_rank_00/file.pt", TRACKER])
def test_what_another_job_put_there_meanwhile_is_in_the_way_and_is_left_alone(tmp_path, there):
    found = target(tmp_path / "mm")
    staging, _ = staged(found)
    check_absent(found)
    (found.directory / there).parent.mkdir(parents=True, exist_ok=True)
    (found.directory / there).write_text("of another job")
    name = Path(there).parts[0]
    with pytest.raises(InputError, match=f"target={found.directory}: {name} is already there; choose another"):
        check_absent(found)
    staging.discard()
    assert {path: text for path, text in tree(found.directory).items() if text} == {there: "of another job"}


def test_another_iteration_is_in_nobodys_way(tmp_path):
    (tmp_path / "iter_0000010").mkdir()
    check_absent(target(tmp_path))
