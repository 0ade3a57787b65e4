"""A job opens regular files and nothing else."""

from __future__ import annotations

import os
import socket

import pytest

from distconv.runtime.regular_files import open_descriptor, open_file, read_at, read_file


def test_a_file_and_a_link_to_it_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"content"
    with open_file(tmp_path / "file") as stream:
        assert (stream.read(3), stream.read()) == (b"con", b"tent")


def test_flags_are_those_of_the_system(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    descriptor = open_descriptor(tmp_path / "file", os.O_WRONLY)
    os.pwrite(descriptor, b"C", 0)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    assert read_file(tmp_path / "file") == b"Content"


@pytest.mark.parametrize("most", [1, 3, 100])
def test_reads_that_end_early_go_on(most, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"0123456789")
    descriptor, real = os.open(tmp_path / "file", os.O_RDONLY), os.pread
    monkeypatch.setattr(os, "pread", lambda file, nbytes, offset: real(file, min(nbytes, most), offset))
    wanted = [(0, 10), (2, 5), (8, 5), (10, 1), (20, 1), (3, 0)]
    found = [read_at(descriptor, nbytes, offset) for offset, nbytes in wanted]
    os.close(descriptor)
    assert found == [b"0123456789", b"23456", b"89", b"", b"", b""]


@pytest.mark.timeout(20)
def test_anything_else_is_an_error_of_the_system(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path, problem in (
        (tmp_path / "pipe", "expected a regular file, found a pipe"),
        ("/dev/zero", "expected a regular file, found a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(OSError, match=problem) as caught:
            open_descriptor(path)
        assert caught.value.filename in (path, str(path))
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket")
        with pytest.raises(OSError, match="No such device"):
            open_descriptor(tmp_path / "socket")
    assert len(os.listdir("/proc/self/fd")) == before
