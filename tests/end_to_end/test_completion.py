"""Completion in the shells themselves: keys are pressed in a terminal, and the command says what it was called with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from distconv.cli.completion import completion
from distconv.errors import InputError
from tests.terminals import Terminal

START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
READY = {
    "bash": "source ./script; distconv() { echo got: \"$@\" end; }; PS1=; echo rea''dy\n",
    "zsh": "autoload -U compinit; compinit -u -D; source ./script; distconv() { echo got: $@ end }; echo rea''dy\n",
    "fish": "source ./script; function distconv; echo got: $argv end; end; echo rea''dy\n",
}


@pytest.mark.parametrize("shell", START)
@pytest.mark.parametrize(
    ("typed", "got"),
    [
        ("target_f\th\t", "target_format=hf"),
        ("layout.plac\tu\t", "layout.placement=u_shape"),
        ("+mod\tqwen3_mo\t_l\t", "+model=qwen3_moe_lora"),
        ("source=my_check\tin\t", "source=my_checkpoint/inner.json"),
        ("io.fs\tf\t rep\tmy_r\t", "io.fsync=false report=my_report.json"),
    ],
)
def test_a_shell_completes_keys_choices_models_and_paths(shell, typed, got, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "my_checkpoint").mkdir()
    (tmp_path / "my_checkpoint/inner.json").touch()
    (tmp_path / "my_report.json").touch()
    (tmp_path / "script").write_text(completion(shell))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "dumb", "LANG": "C.UTF-8"}
    with Terminal(START[shell], tmp_path, environment) as terminal:
        terminal.type(READY[shell])
        terminal.until("ready")
        terminal.type(f"distconv {typed}\n")
        terminal.until(f"got: {got} end")


@pytest.mark.parametrize("shell", START)
def test_no_other_command_is_completed_and_the_script_is_one(shell, tmp_path):
    script = completion(shell)
    assert "python" not in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    checked = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_is_refused_with_those_that_there_are(distconv):
    with pytest.raises(InputError, match=r"expected one of bash, zsh, fish; did you mean bash\?"):
        completion("bsh")
    outcome = distconv("--completion", "tcsh")
    assert (outcome.status, outcome.out) == (2, "")
    assert distconv("--completion", "zsh").out == completion("zsh") + "\n"


def test_the_command_that_is_installed_is_the_one_that_is_completed():
    assert 'distconv = "distconv.cli.entry:main"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
