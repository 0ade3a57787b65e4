"""The file for the agent of torchrun is as the agent reads it, and its report ends with the reason."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from distconv.runtime.elastic import tell_agent

# In a process of its own, since importing torch is not for the others.
REPORT = """
import sys
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
failures = {rank: ProcessFailure(rank, 100 + rank, 2, path) for rank, path in enumerate(sys.argv[1:])}
print(ChildFailedError("distconv", failures))
"""


def test_without_an_agent_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tell_agent("no", {})
    tell_agent("no", {"TORCHELASTIC_ERROR_FILE": ""})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_no_further_failure(tmp_path):
    tell_agent("no", {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "none/error.json")})


@pytest.mark.parametrize("cause", [0, 1, 2])
def test_the_report_ends_with_the_cause(cause, tmp_path):
    paths = [tmp_path / f"{rank}.json" for rank in range(3)]
    for rank, path in enumerate(paths):
        environment = {"TORCHELASTIC_ERROR_FILE": str(path)}
        tell_agent("distconv: wrong\nin é" if rank == cause else None, environment)
        assert set(json.loads(path.read_text())["message"]) == {"message", "extraInfo"}
    said = subprocess.run(
        [sys.executable, "-c", REPORT, *map(str, paths)], capture_output=True, text=True, check=True
    ).stdout
    *_, first, second, border, last = said.split("\n")
    assert first.strip() == "traceback : distconv: wrong"
    assert second.strip() == "in é"
    assert set(border) == {"="}
    assert last == ""
