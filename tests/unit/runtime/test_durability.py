"""What is said to be durable has been written through, as far as the file system has calls for that."""

from __future__ import annotations

import errno
import os
from unittest.mock import Mock

import pytest

from distconv.runtime.durability import synchronise, synchronise_directory


def test_files_and_the_directories_that_name_them(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with (tmp_path / "file").open("wb") as stream:
        synchronise([(stream.name, stream.fileno())])
    assert done == [str(tmp_path / "file"), str(tmp_path)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_may_synchronise_files_alone(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(number, "")))
    synchronise_directory(str(tmp_path))
    with (tmp_path / "file").open("wb") as stream, pytest.raises(OSError, match=str(number)):
        synchronise([(stream.name, stream.fileno())])


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failure_is_one(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(number, "")))
    with pytest.raises(OSError, match=str(number)):
        synchronise_directory(str(tmp_path))
