"""Nothing looks finished before the commit, the tracker comes last, and a job that fails leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from distconv.commit import staging as staging_module
from distconv.commit import swap
from distconv.commit.recovery import recover
from distconv.commit.staging import Staging
from distconv.errors import InputError, JobError
from tests.unit.commit.targets import (
    FILE,
    JOB,
    OTHER_ITERATION,
    TRACKER,
    committed,
    plant,
    put,
    result,
    staged,
    target,
    tree,
    written,
)

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")


@pytest.fixture(params=[True, False], ids=["durable", "fast"])
def durable(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=["exchange", "renames"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that can exchange two names, and one that cannot."""
    if request.param == "renames":
        monkeypatch.setattr(swap, "exchange", Mock(return_value=False))


BOTH_WAYS = pytest.mark.usefixtures("ways")


def test_a_result_is_in_a_hidden_directory_until_it_is_committed(tmp_path, durable):
    staging, files = staged(target(tmp_path))
    work, lock = sorted(path.name for path in tmp_path.iterdir())
    assert (work[:10], lock) == (".distconv-", ".distconv.lock")
    assert staging.path.parent == tmp_path / work
    staging.commit(files, durable=durable)
    staging.close()
    assert tree(tmp_path) == committed("new")


@BOTH_WAYS
def test_a_result_that_is_the_directory_itself_is_prepared_beside_it(tmp_path, durable):
    for text in ("old", "new"):
        staging, files = staged(target(tmp_path / "hf", None), text)
        assert staging.path.parent.parent == tmp_path
        assert staging.path.parent.name.startswith(".distconv-hf-")
        staging.commit(files, durable=durable)
        staging.close()
        assert tree(tmp_path) == {"hf/": "", **{f"hf/{name}": content for name, content in result(text).items()}}


def test_missing_directories_are_made_and_kept_by_the_commit(tmp_path, durable):
    put(target(tmp_path / "a" / "b"), "new", durable=durable)
    assert tree(tmp_path / "a" / "b") == committed("new")


def test_the_names_of_new_directories_are_durable_before_the_result_has_one(tmp_path, monkeypatch):
    durable: set[str] = set()
    fsync, rename = os.fsync, os.rename

    def observed_fsync(descriptor: int) -> None:
        durable.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def observed_rename(old: Path, new: Path) -> None:
        if Path(new).name == "release":
            assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= durable
            durable.clear()
        rename(old, new)

    monkeypatch.setattr(os, "fsync", observed_fsync)
    monkeypatch.setattr(os, "rename", observed_rename)
    put(target(tmp_path / "a" / "b"), "new", durable=True)
    assert str(tmp_path) not in durable


def test_a_target_may_be_relative(tmp_path, monkeypatch, durable):
    monkeypatch.chdir(tmp_path)
    put(target(Path("a/b")), "new", durable=durable)
    assert tree(tmp_path / "a" / "b") == committed("new")


@pytest.mark.parametrize("iteration", ["release", None])
def test_a_target_may_be_a_link_which_stays(tmp_path, iteration):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    put(target(tmp_path / "link", iteration), "new")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "real") == (result("new") if iteration is None else committed("new"))


@BOTH_WAYS
def test_an_iteration_that_is_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path):
    plant(tmp_path, {"elsewhere/x": "training", "mm/": "", f"mm/{TRACKER}": "release"})
    (tmp_path / "mm" / "release").symlink_to("../elsewhere")
    put(target(tmp_path / "mm"), "new")
    assert not (tmp_path / "mm" / "release").is_symlink()
    assert tree(tmp_path / "mm") == committed("new")
    assert tree(tmp_path / "elsewhere") == {"x": "training"}


@BOTH_WAYS
def test_an_older_result_stays_until_the_commit_replaces_it(tmp_path, durable):
    put(target(tmp_path), "old and longer")
    (tmp_path / "release" / "stray.pt").write_text("of the old result")
    staging, files = staged(target(tmp_path))
    assert tree(tmp_path, hidden=False) == {**committed("old and longer"), "release/stray.pt": "of the old result"}
    staging.commit(files, durable=durable)
    staging.close()
    assert tree(tmp_path) == committed("new")


def test_other_iterations_and_files_are_left_alone(tmp_path, durable):
    plant(tmp_path, OTHER_ITERATION)
    put(target(tmp_path), "new", durable=durable)
    assert tree(tmp_path) == {**OTHER_ITERATION, **committed("new")}


@pytest.mark.parametrize(("said", "found"), [(4, "finds 3"), (2, "finds 3")])
def test_a_file_of_another_size_than_its_writer_left_is_not_committed(tmp_path, said, found):
    staging, _ = staged(target(tmp_path))
    with pytest.raises(
        JobError, match=rf"file\.pt: its writer left {said} bytes, the first process {found}; target must"
    ):
        staging.commit({FILE: said}, durable=False)
    staging.close()
    assert tree(tmp_path) == {}


def test_a_file_that_the_first_process_does_not_see_is_not_committed(tmp_path):
    staging, files = staged(target(tmp_path))
    with pytest.raises(
        JobError, match=r"mp_rank_01/file\.pt: its writer left 3 bytes, the first process finds no file"
    ):
        staging.commit({**files, "mp_rank_01/file.pt": 3}, durable=False)
    staging.close()
    assert tree(tmp_path) == {}


def test_closing_removes_everything_that_the_job_made(tmp_path):
    plant(tmp_path, {"mine": ""})
    staging, _ = staged(target(tmp_path / "a" / "b" / "c"))
    staging.close()
    assert tree(tmp_path) == {"mine": ""}
    assert staging.account == "nothing was left in the target"


def test_closing_leaves_what_was_there(tmp_path):
    put(target(tmp_path), "old")
    staging, _ = staged(target(tmp_path))
    staging.close()
    assert tree(tmp_path) == committed("old")


def test_closing_leaves_a_new_directory_that_someone_else_uses_by_now(tmp_path):
    staging, _ = staged(target(tmp_path / "a" / "b"))
    plant(tmp_path, {"a/other": ""})
    staging.close()
    assert tree(tmp_path) == {"a/": "", "a/other": ""}


def test_closing_twice_or_after_the_commit_does_nothing_more(tmp_path):
    staging, files = staged(target(tmp_path / "a"))
    staging.commit(files, durable=False)
    staging.close()
    staging.close()
    assert tree(tmp_path / "a") == committed("new")
    other, _ = staged(target(tmp_path / "b"))
    other.close()
    other.close()
    assert not (tmp_path / "b").exists()


def failing_at(monkeypatch: pytest.MonkeyPatch, name: str, *, error: OSError = NO_SPACE, also_later: bool) -> None:
    """The rename to a file of this name fails; `also_later`: and so does every rename, and exchange, after it."""
    real, real_exchange = os.rename, swap.exchange
    failed = False

    def rename(old: Path, new: Path) -> None:
        nonlocal failed
        if Path(new).name == name or (failed and also_later):
            failed = True
            raise error
        real(old, new)

    def exchange(one: Path, other: Path) -> bool:
        if failed and also_later:
            raise error
        return real_exchange(one, other)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(swap, "exchange", exchange)


@pytest.mark.parametrize("old", [{}, OTHER_ITERATION, {**OTHER_ITERATION, **committed("old"), TRACKER: "10"}])
@BOTH_WAYS
def test_a_commit_that_fails_at_the_tracker_is_taken_back(tmp_path, monkeypatch, old):
    plant(tmp_path, old)
    staging, files = staged(target(tmp_path))
    failing_at(monkeypatch, TRACKER, also_later=False)
    with pytest.raises(JobError, match=r"release: could not be put in place: No space left on device$"):
        staging.commit(files, durable=False)
    assert tree(tmp_path, hidden=False) == old
    staging.close()
    assert tree(tmp_path) == old
    assert staging.account == "nothing was left in the target"


def test_an_older_result_is_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    put(target(tmp_path), "old")
    staging, files = staged(target(tmp_path))
    monkeypatch.setattr(swap, "exchange", Mock(return_value=False))
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        if old == staging.path:
            raise NO_SPACE
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(JobError, match=r"could not be put in place: No space left on device$"):
        staging.commit(files, durable=False)
    staging.close()
    assert tree(tmp_path) == committed("old")


@pytest.mark.parametrize("old", ["10", None], ids=["replaced", "fresh"])
@BOTH_WAYS
def test_a_commit_that_cannot_be_taken_back_either_is_told_and_the_next_job_takes_it_back(tmp_path, monkeypatch, old):
    """A full disk."""
    before = {} if old is None else {**OTHER_ITERATION, **committed("old"), TRACKER: old}
    plant(tmp_path, before)
    staging, files = staged(target(tmp_path))
    with monkeypatch.context() as full:
        failing_at(full, TRACKER, also_later=True)
        with pytest.raises(JobError) as caught:
            staging.commit(files, durable=False)
        staging.close()
    assert str(caught.value).startswith(f"{tmp_path}/release: could not be put in place: No space left on device; ")
    assert f"could neither be put in place nor be taken back: keep {staging.path.parent}" in str(caught.value)
    assert staging.account in str(caught.value)
    texts = [path.read_text() for path in tmp_path.rglob("file.pt")]
    assert sorted(texts) == (["new"] if old is None else ["new", "old"])

    told: list[str] = []
    later = Staging(target(tmp_path), tell=told.append)
    later.claim(JOB, overwrite=True)
    assert tree(tmp_path, hidden=False) == before
    assert told == [f"a job was killed while it put {tmp_path}/release in place: that has been taken back"]


@pytest.mark.parametrize("old", [{}, OTHER_ITERATION], ids=["fresh", "beside another iteration"])
def test_a_commit_that_cannot_be_made_durable_is_taken_back(tmp_path, monkeypatch, old):
    """Whichever of the directories cannot be synchronised, as long as the tracker has not followed."""
    real = swap.synchronise_directory
    for failing in range(5):
        directory = tmp_path / f"mm{failing}"
        plant(directory, old) if old else None
        staging, files = staged(target(directory))
        calls = iter(range(100))

        def synchronise(path: str, calls: Iterator[int] = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise BROKEN
            real(path)

        monkeypatch.setattr(swap, "synchronise_directory", synchronise)
        with pytest.raises(JobError, match=r"could not be put in place: Input/output error$"):
            staging.commit(files, durable=True)
        staging.close()
        assert (tree(directory) if directory.exists() else {}) == old


def test_what_is_back_but_not_durably_keeps_the_other_result(tmp_path, monkeypatch):
    """Else a loss of power could bring back the exchange, after what was exchanged has been removed."""
    put(target(tmp_path), "old")
    (tmp_path / TRACKER).write_text("10")
    staging, files = staged(target(tmp_path))
    seen: list[str] = []

    def synchronise(path: str) -> None:
        seen.append(path)
        if len(seen) > 4:
            raise BROKEN

    with monkeypatch.context() as broken:
        broken.setattr(swap, "synchronise_directory", synchronise)
        with pytest.raises(JobError):
            staging.commit(files, durable=True)
        staging.close()
    assert tree(tmp_path, hidden=False) == {**committed("old"), TRACKER: "10"}
    assert (staging.path / FILE).read_text() == "new"
    assert staging.account == (
        f"{tmp_path}/release is as it was; {staging.path.parent} is left, action=clean removes it"
    )


def test_a_result_that_cannot_be_made_durable_after_its_last_rename_is_in_place(tmp_path, monkeypatch):
    put(target(tmp_path), "old")
    (tmp_path / TRACKER).write_text("10")
    staging, files = staged(target(tmp_path))

    def synchronise(_: str) -> None:
        if (tmp_path / TRACKER).read_text() == "release":
            raise BROKEN

    with monkeypatch.context() as broken:
        broken.setattr(swap, "synchronise_directory", synchronise)
        with pytest.raises(JobError, match="release: is in place and complete, but cannot be made durable: Input/outp"):
            staging.commit(files, durable=True)
        staging.close()
    assert tree(tmp_path, hidden=False) == committed("new")
    assert staging.account.startswith(f"{tmp_path}/release is in place and complete; {staging.path.parent} is left of")
    assert [path.read_text() for path in staging.path.parent.rglob("file.pt")] == ["old"]
    (note,) = recover(staging.path.parent)
    assert note == f"a job was killed after it had put {tmp_path}/release in place: what that replaced has been removed"


def test_a_second_job_is_refused_before_it_works_and_told_of_the_first(tmp_path):
    first, _ = staged(target(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError) as caught:
        Staging(target(tmp_path)).claim(JOB, overwrite=True)
    assert (
        f"target={tmp_path}: another job is at work there: process {os.getpid()} on {os.uname().nodename} since "
        in (str(caught.value))
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    first.close()
    put(target(tmp_path), "second")


def test_iterations_of_a_directory_share_its_tracker_so_one_is_made_at_a_time(tmp_path):
    first, _ = staged(target(tmp_path, "10"))
    with pytest.raises(InputError, match="another job is at work there"):
        Staging(target(tmp_path, "20")).claim(JOB, overwrite=True)
    first.close()


@pytest.mark.parametrize("there", ["link", "same"])
def test_a_second_job_is_refused_by_whatever_path_it_comes(tmp_path, there):
    (tmp_path / "hf").mkdir()
    (tmp_path / "link").symlink_to("hf")
    (tmp_path / "same").symlink_to(tmp_path)
    first, _ = staged(target(tmp_path / "hf", None))
    with pytest.raises(InputError, match="another job is at work there"):
        Staging(target(tmp_path / "link" if there == "link" else tmp_path / "same" / "hf", None)).claim(
            JOB, overwrite=True
        )
    first.close()


def test_results_beside_each_other_are_made_at_the_same_time(tmp_path):
    one, files = staged(target(tmp_path / "a", None))
    other, _ = staged(target(tmp_path / "b", None))
    one.commit(files, durable=False)
    other.commit(files, durable=False)
    one.close()
    other.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_target_that_cannot_be_made_is_refused_and_nothing_is_left(tmp_path):
    plant(tmp_path, {"file": ""})
    with pytest.raises(InputError, match=f"target={tmp_path}/file/a: cannot be written"):
        Staging(target(tmp_path / "file" / "a")).claim(JOB, overwrite=False)
    assert tree(tmp_path) == {"file": ""}


def test_directories_are_not_left_if_the_last_cannot_be_made(tmp_path):
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        Staging(target(tmp_path / "a" / ("b" * 250), None)).claim(JOB, overwrite=False)
    assert tree(tmp_path) == {}


def test_a_result_that_is_in_the_way_is_refused_without_a_trace(tmp_path):
    put(target(tmp_path), "old")
    before = tmp_path.stat().st_mtime_ns
    with pytest.raises(InputError, match="release is already there"), Staging(target(tmp_path)) as staging:
        staging.claim(JOB, overwrite=False)
    assert tmp_path.stat().st_mtime_ns == before


def test_a_result_that_came_while_the_lock_was_taken_is_in_the_way(tmp_path, monkeypatch):
    real = staging_module.take

    def take(path: Path, work: str) -> object:
        plant(tmp_path, committed("of another"))
        return real(path, work)

    monkeypatch.setattr(staging_module, "take", take)
    with pytest.raises(InputError, match="release is already there"), Staging(target(tmp_path)) as staging:
        staging.claim(JOB, overwrite=False)
    assert tree(tmp_path) == committed("of another")


def test_a_result_that_appears_at_the_last_moment_is_not_replaced_unasked(tmp_path):
    staging, files = staged(target(tmp_path), overwrite=False)
    real = swap.prepare
    with pytest.MonkeyPatch.context() as patch:

        def prepare(*arguments: object, **options: object) -> swap.Swap:
            prepared = real(*arguments, **options)  # type: ignore[arg-type]
            plant(tmp_path, committed("of another"))
            return prepared

        patch.setattr(staging_module, "prepare", prepare)
        with pytest.raises(JobError, match="could not be put in place: Directory not empty"):
            staging.commit(files, durable=False)
    staging.close()
    assert tree(tmp_path) == committed("of another")


@contextlib.contextmanager
def leaving(staging: Staging) -> Iterator[None]:
    with staging:
        staging.claim(JOB, overwrite=True)
        yield


def leave(staging: Staging, error: BaseException | None, *, commit: bool) -> None:
    with staging:
        staging.claim(JOB, overwrite=True)
        if commit:
            staging.commit(written(staging), durable=False)
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("commit", "account"),
    [(False, "nothing was left in the target"), (True, "{tmp}/release is in place and complete")],
)
def test_leaving_after_an_interruption_says_what_is_true(tmp_path, commit, account):
    with pytest.raises(KeyboardInterrupt) as caught:
        leave(Staging(target(tmp_path)), KeyboardInterrupt(), commit=commit)
    assert caught.value.args == (account.format(tmp=tmp_path),)
    assert tree(tmp_path) == (committed("new") if commit else {})


def test_an_interruption_where_nothing_was_claimed_says_nothing_of_the_target(tmp_path):
    """Nothing is known of it on processes that are not the first."""
    with pytest.raises(KeyboardInterrupt) as caught, Staging(target(tmp_path)):
        raise KeyboardInterrupt("no more")
    assert caught.value.args == ("no more",)


def test_an_interruption_keeps_its_text(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"^no more; nothing was left in the target$"):
        leave(Staging(target(tmp_path)), KeyboardInterrupt("no more"), commit=False)


def test_an_error_after_the_commit_says_that_the_result_is_in_place(tmp_path):
    with pytest.raises(JobError, match=f"^cannot be written; {tmp_path}/release is in place and complete$"):
        leave(Staging(target(tmp_path)), InputError("cannot be written"), commit=True)


def test_a_defect_after_the_commit_stays_one_and_the_result_is_told(tmp_path):
    told: list[str] = []
    with pytest.raises(ZeroDivisionError):
        leave(Staging(target(tmp_path), tell=told.append), ZeroDivisionError(), commit=True)
    assert told == [f"{tmp_path}/release is in place and complete"]


@pytest.mark.parametrize("error", [InputError("wrong"), JobError("failed")])
def test_an_error_before_the_commit_stays_as_it_is(tmp_path, error):
    with pytest.raises(type(error), match=f"^{error}$"):
        leave(Staging(target(tmp_path)), error, commit=False)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("error", [JobError("the cause"), None])
def test_a_signal_while_leaving_hides_no_error(tmp_path, error):
    entered = []

    @contextlib.contextmanager
    def undisturbed() -> Iterator[None]:
        entered.append(1)
        yield
        if len(entered) == 2:
            raise KeyboardInterrupt

    expected = (KeyboardInterrupt, "nothing was left in the target") if error is None else (JobError, "^the cause$")
    with pytest.raises(expected[0], match=expected[1]):
        leave(Staging(target(tmp_path), undisturbed=undisturbed), error, commit=False)
    assert tree(tmp_path) == {}


def test_what_cannot_be_removed_after_the_commit_is_told(tmp_path, monkeypatch):
    put(target(tmp_path), "old")
    told: list[str] = []
    staging = Staging(target(tmp_path), tell=told.append)
    monkeypatch.setattr(staging_module, "remove", lambda _: None)
    leave(staging, None, commit=True)
    work = staging.path.parent
    assert told == [
        f"{tmp_path}/release is in place and complete; {work} is left of what it replaced, action=clean removes it"
    ]
    assert tree(tmp_path, hidden=False) == committed("new")


def test_the_swap_is_undisturbed_and_removing_what_was_replaced_is_not(tmp_path, monkeypatch):
    put(target(tmp_path), "old")
    inside: list[str] = []
    shielded = False

    @contextlib.contextmanager
    def undisturbed() -> Iterator[None]:
        nonlocal shielded
        shielded = True
        yield
        shielded = False

    real_exchange, real_remove = swap.exchange, staging_module.remove
    monkeypatch.setattr(swap, "exchange", lambda *names: (inside.append(f"swap {shielded}"), real_exchange(*names))[1])
    monkeypatch.setattr(
        staging_module, "remove", lambda work: (inside.append(f"remove {shielded}"), real_remove(work))[1]
    )
    staging, files = staged(target(tmp_path), undisturbed=undisturbed)
    staging.commit(files, durable=False)
    staging.close()
    assert inside[:2] == ["swap True", "remove False"]
