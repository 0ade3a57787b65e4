"""The identity of a `.distcp` file has the first bytes of its first wanted blob, and the last ones of its last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distconv.formats.dcp import chunks as module
from distconv.formats.dcp.index import locate, open_dcp
from distconv.runtime.identity import changes, look_again
from distconv.tensors.stored import SourceFile
from tests.unit.dcp_files import Draft, rows

FRAME = 64


@pytest.fixture
def file(tmp_path, monkeypatch) -> SourceFile:
    """A file of three blobs, each of which is longer than its two frames."""
    monkeypatch.setattr(module, "_FRAME_BYTES", FRAME)
    made = Draft()
    for name in "abc":
        made.put(name, np.arange(64, dtype=np.uint32).reshape(1, 64), "float32", rows(1, 1))
    (found,) = locate(open_dcp(made.save(tmp_path), None), lambda _: True).files
    return found


def header_is_another(file: SourceFile, at: int) -> bool:
    """Whether a byte counts that is changed at the time of the file."""
    content = bytearray(Path(file.path).read_bytes())
    content[at] ^= 1
    Path(file.path).write_bytes(content)
    with Path(file.path).open("rb") as stream:
        found = changes(file, look_again(file, stream.fileno()))
    content[at] ^= 1
    Path(file.path).write_bytes(content)
    return "its header is another" in found


def test_the_first_and_the_last_bytes_count(file):
    ends = (0, FRAME - 1, file.size - FRAME, file.size - 1)
    assert [header_is_another(file, at) for at in ends] == [True] * 4
    between = (FRAME, file.size // 2, file.size - FRAME - 1)
    assert [header_is_another(file, at) for at in between] == [False] * 3
