"""What shells make of paths and lists in scripts, and what is said where they have taken them apart.

Scripts as people write them, run by the shells themselves; a batch system runs the same by bash or sh.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import load_case, write_source

SHELLS = ("bash", "zsh", "sh")
FOUND = "format   a Hugging Face directory"
LIST = "layout.stages.text=[1,2,3]"


@dataclass(frozen=True, kw_only=True)
class Script:
    """Lines of a script, and for each shell what is said by the program with which status, or by that shell."""

    lines: str
    says: str = FOUND
    status: int = 0
    in_zsh: tuple[int, str] | None = None


# `my hf` is the checkpoint; `distconv inspect` is short for what it does.
SCRIPTS = {
    "a variable in quotes": Script(lines='SRC="$PWD/my hf"\ndistconv action=inspect source="$SRC"'),
    "the whole word in quotes": Script(lines='SRC="my hf"\ndistconv action=inspect "source=$SRC"'),
    "quotes within a word": Script(lines="distconv action=inspect source='my hf'"),
    "a backslash": Script(lines="distconv action=inspect source=my\\ hf"),
    "a variable that we replace": Script(lines="export SRC='my hf'\ndistconv action=inspect 'source=$SRC'"),
    "a home that we replace": Script(lines='HOME=$PWD\nln -s "my hf" hf\ndistconv action=inspect source=~/hf'),
    "a variable without quotes": Script(
        lines='SRC="my hf"\ndistconv action=inspect source=$SRC',
        says="hf: no option; if it belongs to source=my, which the shell has cut at a blank, quote them together: "
        "'source=my hf'; in a script: source=\"$NAME\"",
        status=2,
        in_zsh=(0, FOUND),
    ),
    "quotes inside a variable": Script(
        lines="OPTIONS=\"source='my hf'\"\ndistconv action=inspect $OPTIONS",
        says="hf': is cut off source='my: quotes inside a variable quote nothing",
        status=2,
        in_zsh=(0, FOUND),
    ),
    "a variable that is not set": Script(
        lines="distconv action=inspect source=$SCR",
        says="source=: expected a path; is a variable not set?",
        status=2,
    ),
    "a variable that is not set, in quotes": Script(
        lines='set -e\ndistconv action=inspect source="$SCR"',
        says="source=: expected a path; is a variable not set?",
        status=2,
    ),
    "a variable that is not set, which we replace": Script(
        lines="distconv action=inspect 'source=$SCR/hf'",
        says="source=$SCR/hf: no such directory; the variable SCR is not set",
        status=2,
    ),
    "more options in a variable that is not set": Script(
        lines='set -e\ndistconv action=inspect source="my hf" "$MORE"',
        says="'': is nothing: a variable in quotes that is not set",
        status=2,
    ),
    "a blank behind the end of a line": Script(
        lines='set -e\ndistconv action=inspect \\ \nsource="my hf"',
        says="' ': is nothing: a variable in quotes that is not set, or a blank behind the \\ at the end of a line",
        status=2,
    ),
    "line ends of Windows": Script(
        lines='set -e\ndistconv action=inspect source="my hf"\r',
        says="source=my hf\\r: ends with a carriage return",
        status=2,
    ),
    "a list in quotes": Script(lines=f"distconv action=plan source='my hf' target=mm '{LIST}'", says="files    "),
    "a list with blanks": Script(
        lines="distconv action=inspect source='my hf' layout.stages.text=[1, 2, 3]",
        says="2, 3]: is cut off layout.stages.text=[1,: write it without blanks, in quotes: "
        "'layout.stages.text=[1,2,3]'",
        status=2,
        in_zsh=(1, "bad pattern: layout.stages.text=[1,"),
    ),
    "a list without quotes": Script(
        lines=f"distconv action=plan source='my hf' target=mm {LIST}",
        says="",
        in_zsh=(1, f"no matches found: {LIST}"),
    ),
    "a model with an exclamation mark and braces": Script(
        lines="mv 'my hf' 'a{b}!c'\ndistconv action=inspect 'source=a{b}!c'"
    ),
    "a pattern": Script(
        lines="mkdir runs\nmv 'my hf' runs/one\ndistconv action=plan 'sources=runs/*' 'target=mm/{name}'",
        says="1 done, 0 skipped, 0 failed",
    ),
    "what is wrapped for a batch system": Script(
        lines='SRC="my hf"\nsh -c "distconv action=inspect source=$SRC"',
        says="quote them together: 'source=my hf'",
        status=2,
    ),
    "what is wrapped and quoted": Script(lines="export SRC='my hf'\nsh -c 'distconv action=inspect source=\"$SRC\"'"),
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_finds_its_checkpoint_or_is_told_about_quotes(script, shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    write_source(tmp_path / "my hf", load_case("qwen2vl__tp1_pp1"))
    (tmp_path / "script").write_bytes(script.lines.encode())
    own = Path(sys.executable).parent
    environment = {"PATH": f"{own}:{os.environ['PATH']}", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    done = subprocess.run(
        [shell, *(["-f"] if shell == "zsh" else []), "script"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    status, says = script.in_zsh if shell == "zsh" and script.in_zsh else (script.status, script.says)
    assert done.returncode == status, done
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
