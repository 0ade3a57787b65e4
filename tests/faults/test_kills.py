"""Jobs that are killed at twenty random moments, and started again; hundreds of them by `make soak`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.faults.kills import Killing, rounds

KILLS = 20
# Of as many tests, so that several run at a time.
PARTS = 4


@pytest.fixture
def killing(room: Path) -> Iterator[Killing]:
    with tempfile.TemporaryDirectory(dir=room.parent) as own:
        shutil.copytree(room / "made", Path(own) / "made", symlinks=True)
        yield Killing(Path(own))


@pytest.mark.parametrize("part", range(PARTS))
def test_the_same_command_ends_well(part, killing):
    done = list(rounds(killing, count(part * 1000), KILLS // PARTS))
    assert sum(each.kills for each in done) >= KILLS // PARTS
