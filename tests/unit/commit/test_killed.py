"""A job may be killed at any moment of its commit: nothing is lost, and the next start leaves one of both results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.commit import killed

REPOSITORY = Path(__file__).parents[3]


def run(*arguments: object) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.unit.commit.killed", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.parametrize("how", ["exchange", "renames"])
@pytest.mark.parametrize("scenario", killed.SCENARIOS)
def test_killed_at_each_step(memory, how, scenario):
    counts = run(memory, how, scenario)
    # States before the commit point, and after it.
    assert min(counts.values()) >= 3, counts


@pytest.mark.parametrize("how", ["exchange", "renames", "mixed"])
def test_killed_again_while_the_next_start_puts_it_right(memory, how):
    counts = run(memory, how, "again beside training", "twice")
    assert min(counts.values()) >= 3, counts
