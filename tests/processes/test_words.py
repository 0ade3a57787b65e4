"""What is last on the screen, how much is said, and in which colours: under launchers, in terminals, in logs."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.checkpoints import load_case, write_source
from tests.processes.jobs import LAUNCHER_NAMES, mpirun, run, single, torchrun
from tests.terminals import Terminal

CASE = load_case("qwen2vl__tp2_pp2")
JOB = ("source=hf", "target=mm", "layout.tp=2")
RED = "\x1b[31mdistconv:\x1b[0m"


@pytest.fixture
def directory(tmp_path) -> Path:
    write_source(tmp_path / "hf", CASE)
    return tmp_path


def of_a_user(**more: str) -> dict[str, str]:
    """The environment of a shell without a launcher."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_NAMES)}
    return {**{name: value for name, value in inherited.items() if name != "NO_COLOR"}, "TERM": "xterm", **more}


@pytest.mark.parametrize("words", [["source=nowhere", "target=mm"], ["--tp", "2"], ["plan"]])
def test_under_torchrun_the_last_thing_on_the_screen_is_why(words, tmp_path):
    done = run(torchrun(2, *words), tmp_path)
    assert done.status != 0
    said = re.search(r"^distconv: .*", done.err, re.MULTILINE)
    assert said is not None
    assert "To enable traceback" not in done.err
    rest = done.err[done.err.rindex(said[0]) :].removeprefix(said[0])
    # What is left are further lines of the same message, and the frame of the report.
    assert "traceback" not in rest
    assert "File " not in rest
    assert len(rest.splitlines()) <= 4


def test_a_failure_in_the_middle_of_a_job_is_last_as_well(directory):
    shard = next(directory.glob("hf/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    done = run(torchrun(2, *JOB), directory)
    assert done.status != 0
    *_, last, border, _ = done.err.split("\n")
    assert last.startswith(("  traceback : distconv: ", "  "))
    assert "truncated" in last
    assert set(border) == {"="}


def test_only_rank_0_answers_what_needs_no_job(tmp_path):
    for words, says in ((["--version"], "distconv "), (["help"], "Options, as KEY=VALUE")):
        done = run(mpirun(2, *words), tmp_path)
        assert (done.status, done.err) == (0, "")
        assert done.out.count(says) == 1


def test_quiet_is_silent_but_for_errors(directory):
    done = run(single(*JOB, "-q"), directory)
    assert (done.status, done.out, done.err) == (0, "", "")
    done = run(single("--quiet", *JOB), directory)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("distconv: target=mm: ")


def test_verbose_says_how_long_each_phase_took(directory):
    usual = run(single(*JOB), directory)
    done = run(single(*JOB, "-v", "overwrite=true"), directory)
    assert done.status == usual.status == 0, done.err
    pattern = r"^ +phase +fastest +slowest +its rank\n +planning +\d+\.\d\d s +\d+\.\d\d s +0\n +transfer "
    assert re.search(pattern, done.out, re.MULTILINE), done.out
    assert "fastest" not in usual.out


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("environment", "has_colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_shows_errors_in_colour_unless_it_must_not(columns, environment, has_colour, tmp_path):
    command = single("source=nowhere", "target=mm")
    with Terminal(command, tmp_path, of_a_user(**environment), columns=columns) as terminal:
        status, shown = terminal.end()
    assert status == 2
    assert shown == f"{RED if has_colour else 'distconv:'} source=nowhere: no such directory\r\n"


def test_a_terminal_under_torchrun_shows_colour_and_a_log_never(tmp_path):
    command = torchrun(2, "source=nowhere", "target=mm")
    with Terminal(command, tmp_path, of_a_user(OMP_NUM_THREADS="1")) as terminal:
        _, shown = terminal.end()
    assert shown.count(RED) == 1
    assert "\x1b" not in run(command, tmp_path, {"TERM": "xterm"}).err


def test_an_answer_in_a_terminal_has_no_colour(tmp_path):
    with Terminal(single("--version"), tmp_path, of_a_user()) as terminal:
        status, shown = terminal.end()
    assert status == 0
    assert "\x1b" not in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_interpreter_ends_is_no_traceback(number, tmp_path):
    """Packages have functions that run then, such as torch."""
    late = f"import atexit, os, runpy, sys; atexit.register(os.kill, os.getpid(), {int(number)})"
    program = f"{late}; sys.argv = ['distconv', '--version']; runpy.run_module('distconv', run_name='__main__')"
    outcome = run([sys.executable, "-c", program], tmp_path)
    assert (outcome.status, outcome.err) == (0, "")
