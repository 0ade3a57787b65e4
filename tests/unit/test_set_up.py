"""What `make setup` asks pip for: the CPU build of torch where there is one, or the torch that is installed."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import pytest

from tests.documents import ROOT

# A Python that notes what it is asked for, and a pip that knows no CPU build, or no index at all.
PYTHON = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
    *+cpu*) {of_the_cpu_build} ;;
    *'import torch'*) {of_torch} ;;
esac
"""
NONE = "echo 'ERROR: No matching distribution found for torch' >&2; exit 1"


@dataclass(frozen=True, kw_only=True)
class SetUp:
    status: int
    said: str
    asked: list[str]


@pytest.fixture
def set_up(tmp_path):
    """Run `make setup` with such a Python; nothing of the checkout is touched."""

    def run(*variables: str, of_the_cpu_build: str = "true", of_torch: str = "true") -> SetUp:
        log = tmp_path / "log"
        log.touch()
        python = tmp_path / "python"
        python.write_text(PYTHON.format(log=log, of_the_cpu_build=of_the_cpu_build, of_torch=of_torch))
        python.chmod(0o755)
        changed = [f"PYTHON={python}", f"BIN={tmp_path}", f"READY={tmp_path / 'ready'}", f"{tmp_path / 'ready'}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "TORCH"))}
        done = subprocess.run(
            ["make", "-C", str(ROOT), *changed, *variables],  # noqa: S607 - the one of the system
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return SetUp(status=done.returncode, said=done.stdout + done.stderr, asked=log.read_text().splitlines())

    return run


def torch_of(asked: list[str]) -> list[str]:
    return [each.partition("install ")[2] for each in asked if "torch==" in each]


def test_the_cpu_build_is_taken_where_pip_knows_it(set_up):
    done = set_up()
    assert done.status == 0, done.said
    assert torch_of(done.asked) == ["torch==2.13.0+cpu"]
    assert done.asked[0] == "-m venv .venv"
    assert [line[:6] for line in done.said.splitlines() if " of 4: " in line] == [
        f"{step} of 4" for step in range(1, 5)
    ]


def test_an_index_that_is_named_is_asked_too(set_up):
    done = set_up("TORCH_INDEX=https://index/whl/cpu", "TORCH=2.6.0")
    assert torch_of(done.asked) == ["--extra-index-url https://index/whl/cpu torch==2.6.0+cpu"]


def test_without_a_cpu_build_another_one_comes_and_the_index_is_named(set_up):
    done = set_up(of_the_cpu_build=NONE)
    assert done.status == 0, done.said
    assert torch_of(done.asked) == ["torch==2.13.0+cpu", "torch==2.13.0"]
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in done.said


def test_another_failure_of_pip_is_one(set_up):
    done = set_up(of_the_cpu_build="echo 'ERROR: no space left' >&2; exit 1")
    assert done.status != 0
    assert "no space left" in done.said
    assert torch_of(done.asked) == ["torch==2.13.0+cpu"]


def test_the_torch_of_the_system_is_taken_as_it_is(set_up):
    done = set_up("TORCH=system")
    assert done.status == 0, done.said
    assert done.asked[0] == "-m venv --system-site-packages .venv"
    assert torch_of(done.asked) == []
    assert any("import torch" in each for each in done.asked)


def test_a_system_without_torch_is_told(set_up):
    done = set_up("TORCH=system", of_torch="exit 1")
    assert done.status != 0
    assert "TORCH=system: " in done.said
    assert "has no torch; name a Python that has" in done.said
    assert not any("--editable" in each for each in done.asked)
