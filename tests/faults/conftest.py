"""Fixtures for tests with faults."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conversions import make_sources
from tests.unit.commit.conftest import MEMORY


@pytest.fixture(scope="session")
def room() -> Iterator[Path]:
    """A directory, in memory if there is some, with what all conversions start from in `made`."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as directory:
        (Path(directory) / "made").mkdir()
        make_sources(Path(directory) / "made")
        yield Path(directory)
