"""The demonstration: it ends with what it has proved, and with a command for a model of one's own that is right."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distconv.page.page import BEGINNING
from tests.checkpoints import load_case, write_source
from tests.processes.jobs import run, single

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of what the demonstration needs, where it makes its directory."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "benchmarks" / "synthetic.py", tmp_path / "benchmarks")
    return tmp_path


def test_the_demonstration_proves_its_result_and_ends_with_the_next_command(demo):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        [str(demo / "launch" / "demo.sh"), "8"],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "verified: 8 files" in found.stdout
    assert (demo / "demo" / "plan.html").read_text().startswith(BEGINNING)
    *_, proved, command = found.stdout.splitlines()
    assert proved.startswith("Proved: demo/megatron holds byte for byte what demo/Qwen2-VL says")

    program, *words = shlex.split(command)
    assert Path(program).name == "torchrun"
    assert words[words.index("-m") + 1] == "distconv"
    write_source(demo / "model", load_case("qwen2vl__tp2_pp2"))
    options = [re.sub(r"/path/to/", f"{demo}/", word) for word in words[words.index("distconv") + 1 :]]
    outcome = run(single(*options, "action=plan"), demo)
    assert outcome.status == 0, outcome.err
