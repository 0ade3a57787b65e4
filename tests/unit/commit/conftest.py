"""Fixtures for tests of what is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = "/dev/shm"  # noqa: S108 - a directory of a name that nobody can guess is made in it


@pytest.fixture
def memory(tmp_path) -> Iterator[Path]:
    """A directory in memory if there is one: what is made durable a thousand times takes minutes on a disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path) as directory:
        yield Path(directory)
