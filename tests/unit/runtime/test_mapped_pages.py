"""Pages of a mapped file are given back, and nothing else is."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from distconv.runtime import mapped_pages
from distconv.runtime.mapped_pages import MappedPages

SIZE = 64 * 1024 * 1024


def resident(name: str) -> int:
    """The bytes of a file's mappings that are in memory of this process."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            counts = line.endswith(name)
        elif counts and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    """A mapping of a file of ones, private as torch makes it, all of it in memory."""
    path = tmp_path / "with a space"
    path.write_bytes(b"\1" * SIZE)
    with path.open("rb") as stream:
        array = np.frombuffer(mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE), np.uint8)
    assert int(array.sum()) == SIZE
    assert resident(path.name) == SIZE
    return array


def test_pages_are_given_back_and_come_again(mapped, tmp_path):
    MappedPages(tmp_path / "with a space").drop(mapped.ctypes.data + 5, SIZE - 10)
    assert resident("with a space") == 0
    assert int(mapped.sum()) == SIZE


def test_other_pages_stay(mapped, tmp_path):
    quarter = SIZE // 4
    MappedPages(tmp_path / "with a space").drop(mapped.ctypes.data + quarter, quarter)
    left = resident("with a space")
    # Those around may go, too.
    assert SIZE // 2 < left < SIZE


@pytest.mark.usefixtures("mapped")
def test_memory_that_is_no_mapping_of_the_file_is_left_alone(tmp_path):
    """It would be zeros afterwards."""
    other = np.ones(SIZE, np.uint8)
    MappedPages(tmp_path / "with a space").drop(other.ctypes.data, SIZE)
    assert int(other.sum()) == SIZE
    assert resident("with a space") == SIZE


def test_another_file_is_left_alone(mapped, tmp_path):
    (tmp_path / "space").write_bytes(b"\1" * SIZE)
    MappedPages(tmp_path / "space").drop(mapped.ctypes.data, SIZE)
    assert resident("with a space") == SIZE


def test_a_file_by_another_name(mapped, tmp_path):
    (tmp_path / "link").symlink_to("with a space")
    MappedPages(tmp_path / "link").drop(mapped.ctypes.data, SIZE)
    assert resident("with a space") == 0


def test_a_system_that_does_not_tell(mapped, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_pages, "_MAPS", tmp_path / "none")
    MappedPages(tmp_path / "with a space").drop(mapped.ctypes.data, SIZE)
    assert resident("with a space") == SIZE
