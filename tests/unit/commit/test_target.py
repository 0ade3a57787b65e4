"""A result goes where nothing else is lost by it; everything else is refused, and nothing is touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distconv.commit import target as target_module
from distconv.commit.target import Target, check_result, check_space, check_target
from distconv.errors import InputError
from tests.unit.commit.targets import TRACKER, plant, target, tree


@pytest.mark.parametrize(
    ("directory", "iteration", "place", "lock"),
    [
        ("mm", "release", "mm/release", "mm/.distconv.lock"),
        ("mm", "10", "mm/iter_0000010", "mm/.distconv.lock"),
        ("hf", None, "hf", ".distconv.hf.lock"),
        (".", None, ".", "../.distconv.{name}.lock"),
        ("link", None, "real", ".distconv.real.lock"),
        ("link", "release", "real/release", "real/.distconv.lock"),
    ],
)
def test_where_a_result_goes(tmp_path, monkeypatch, directory, iteration, place, lock):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("real")
    found = target(Path(directory), iteration)
    assert found.place == Path(os.path.normpath(tmp_path / place))
    assert found.area.lock == Path(os.path.normpath(tmp_path / lock.format(name=tmp_path.name)))
    assert found.home == found.place.parent == found.area.home
    assert found.result.resolve() == found.place
    assert found.tracker == (None if iteration is None else Path(directory) / TRACKER)


def check(directory: Path, *, iteration: str | None = "release", **sources: Path) -> None:
    check_target(target(directory, iteration), sources)


def test_a_target_that_can_be_written_is_not_touched(tmp_path):
    plant(tmp_path, {"source/": "", "target/": ""})
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


def test_a_source_that_cannot_be_listed_may_link_into_the_result(tmp_path, monkeypatch):
    plant(tmp_path, {"hf/config.json": "{}", "hf/weights": "", "source/deep/": ""})
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=f"{tmp_path}/source: cannot be read: Permission denied"):
        check(tmp_path / "hf", iteration=None, source=tmp_path / "source")


def test_a_source_that_links_into_the_result_would_be_lost_with_it(tmp_path):
    plant(tmp_path, {"hf/config.json": "{}", "hf/weights": "", "source/deep/": "", "other/": ""})
    check(tmp_path / "hf", iteration=None, source=tmp_path / "source")
    (tmp_path / "source" / "deep" / "weights").symlink_to(tmp_path / "hf" / "weights")
    with pytest.raises(InputError, match=f"source={tmp_path}/source: {tmp_path}/source/deep/weights leads into"):
        check(tmp_path / "hf", iteration=None, source=tmp_path / "source")
    check(tmp_path / "other", iteration=None, source=tmp_path / "source")


def test_a_mount_point_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "hf").mkdir()
    monkeypatch.setattr(target_module, "is_mount_point", lambda path: path == tmp_path / "hf")
    check(tmp_path / "hf", iteration="release")
    with pytest.raises(InputError, match=f"target={tmp_path}/hf: {tmp_path}/hf is a mount point, .* a directory in it"):
        check(tmp_path / "hf", iteration=None)


@pytest.mark.parametrize(
    ("prepare", "directory", "message"),
    [
        (None, "source", "is inside source={tmp}/source; choose a directory outside of it"),
        (None, "source/deep/er", "is inside source={tmp}/source"),
        (lambda tmp: (tmp / "link").symlink_to(tmp / "source"), "link/a", "is inside source={tmp}/source"),
        (lambda tmp: (tmp / "link").symlink_to("link"), "link", "cannot be looked at: Too many levels of symbolic"),
        (lambda tmp: (tmp / "file").touch(), "file", "exists and is not a directory"),
        (lambda tmp: plant(tmp, {"mm/release": ""}), "mm", "release exists and is not a directory"),
        (lambda tmp: (tmp / "file").touch(), "file/a/b", "{tmp}/file is not a directory"),
    ],
)
def test_a_target_that_will_not_do_is_refused(tmp_path, prepare: Callable[[Path], Any] | None, directory, message):
    (tmp_path / "source").mkdir()
    if prepare is not None:
        prepare(tmp_path)
    with pytest.raises(InputError) as caught:
        check(tmp_path / directory, source=tmp_path / "source")
    assert str(caught.value).startswith(f"target={tmp_path / directory}: {message.format(tmp=tmp_path)}")


def test_space_is_what_this_user_may_use_in_units_of_the_file_system(tmp_path, monkeypatch):
    found = SimpleNamespace(f_bavail=7, f_bfree=11, f_blocks=13, f_frsize=512, f_bsize=4096, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    check_space(target(tmp_path / "new"), 7 * 512)
    with pytest.raises(InputError, match=r"needs 3,585 bytes, but only 3,584 are free on its file system"):
        check_space(target(tmp_path / "new"), 7 * 512 + 1)


def test_a_file_system_that_does_not_tell_its_size_has_room(tmp_path, monkeypatch):
    """One in user space that has no such call gives zeros."""
    unknown = SimpleNamespace(f_bavail=0, f_bfree=0, f_blocks=0, f_frsize=512, f_bsize=512, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _: unknown)
    check_space(target(tmp_path / "new"), 1)


@pytest.mark.parametrize(("iteration", "closed"), [("release", "a"), (None, ".")])
def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch, iteration, closed):
    """A result that is a directory itself gets its name in the one above."""
    (tmp_path / "a").mkdir()
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: real(path, mode) and not (path == tmp_path / closed and mode & os.W_OK)
    )
    with pytest.raises(InputError, match=f"target={tmp_path}/a: no permission to write in {tmp_path / closed}"):
        check(tmp_path / "a", iteration=iteration)


def test_a_result_that_cannot_be_moved_is_refused(tmp_path, monkeypatch):
    plant(tmp_path, {"release/": ""})
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "release" or not mode & os.W_OK)
    with pytest.raises(InputError, match=f"target={tmp_path}: no permission to replace {tmp_path}/release"):
        check(tmp_path)


@pytest.mark.parametrize("there", ["release/mp_rank_00/file.pt", "release/", TRACKER])
def test_a_result_that_is_there_is_in_the_way_unless_it_is_to_be_replaced(tmp_path, there):
    check_result(target(tmp_path), overwrite=False)
    plant(tmp_path, {there: "of another job"})
    name = Path(there).parts[0]
    with pytest.raises(InputError, match=f"target={tmp_path}: {name} is already there; choose another"):
        check_result(target(tmp_path), overwrite=False)
    check_result(target(tmp_path), overwrite=True)


def test_another_iteration_is_in_nobodys_way(tmp_path):
    (tmp_path / "iter_0000010").mkdir()
    check_result(target(tmp_path), overwrite=False)


def test_an_empty_directory_may_become_the_result(tmp_path):
    check_result(target(tmp_path, None), overwrite=False)
    plant(tmp_path, {"x": ""})
    with pytest.raises(InputError, match="is already there; choose another directory"):
        check_result(target(tmp_path, None), overwrite=False)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", None])
def test_only_a_directory_with_a_mark_of_a_result_is_overwritten_as_a_whole(tmp_path, name):
    found = Target(directory=tmp_path / "hf", iteration=None, marks=("config.json", "adapter_config.json"))
    check_result(found, overwrite=True)
    found.directory.mkdir()
    check_result(found, overwrite=True)
    (found.directory / "thesis.txt").touch()
    with pytest.raises(InputError, match=f"target={found.directory}: holds no config.json or adapter_config.json: it"):
        check_result(found, overwrite=True)
    if name is not None:
        (found.directory / name).touch()
        check_result(found, overwrite=True)
