"""Two names are exchanged in one call, or nothing has happened."""

from __future__ import annotations

import ctypes
import errno
from unittest.mock import Mock

import pytest

from distconv.commit.exchange import exchange
from tests.unit.commit.targets import plant, tree


def test_directories_with_all_that_is_in_them_are_exchanged(tmp_path):
    plant(tmp_path, {"a/x": "1", "b/deep/y": "2"})
    assert exchange(tmp_path / "a", tmp_path / "b" / "deep")
    assert tree(tmp_path) == {"a/": "", "a/y": "2", "b/": "", "b/deep/": "", "b/deep/x": "1"}


def test_nothing_happens_to_one_name_if_the_other_is_missing(tmp_path):
    plant(tmp_path, {"a/x": "1"})
    with pytest.raises(FileNotFoundError) as caught:
        exchange(tmp_path / "a", tmp_path / "b")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert tree(tmp_path) == {"a/": "", "a/x": "1"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM])
def test_a_file_system_that_cannot_is_no_error(tmp_path, monkeypatch, number):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Mock(renameat2=Mock(return_value=-1)))
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    assert not exchange(tmp_path / "a", tmp_path / "b")


def test_a_system_that_has_no_such_call_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert not exchange(tmp_path / "a", tmp_path / "b")
