"""Where the data of a member begins is what its own header says, whoever has read it."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from unittest.mock import patch

import pytest

from distconv.formats.torch_zip.local_headers import LocalHeaders

NAMES = [f"data/{number}" for number in range(50)]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    with zipfile.ZipFile(path, "w") as made:
        for name in NAMES:
            made.writestr(name, f"content of {name}")
    return path


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("most", [1, 17, 100])
def test_data_begins_behind_its_header(archive: Path, ahead, most):
    """Also where the system gives less than it is asked for."""
    pread = os.pread
    with archive.open("rb") as stream, zipfile.ZipFile(stream) as opened:
        headers = LocalHeaders(stream)
        if ahead:
            with patch.object(os, "pread", lambda descriptor, size, at: pread(descriptor, min(size, most), at)):
                headers.read_ahead(opened.infolist())
        for info in opened.infolist():
            start = headers.data_offset(info)
            assert archive.read_bytes()[start:][: info.file_size] == f"content of {info.filename}".encode()


def test_what_was_read_ahead_is_not_read_again(archive: Path):
    with archive.open("rb") as stream, zipfile.ZipFile(stream) as opened:
        headers = LocalHeaders(stream)
        headers.read_ahead(opened.infolist())
        with patch.object(headers, "_stream", None):
            assert [headers.data_offset(info) for info in opened.infolist()]


@pytest.mark.parametrize("offset", [-5, 2**40])
def test_a_header_that_is_in_no_file_is_an_error_where_it_is_asked_for(archive: Path, offset):
    with archive.open("rb") as stream, zipfile.ZipFile(stream) as opened:
        headers, infos = LocalHeaders(stream), opened.infolist()
        infos[7].header_offset = offset
        headers.read_ahead(infos)
        assert headers.data_offset(infos[6]) > 0
        with pytest.raises((struct.error, OSError)):
            headers.data_offset(infos[7])
