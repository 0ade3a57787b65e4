"""What is said of a plan and of a result, and that only the first process says it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distconv.cli.models_text import models_text
from distconv.cli.show import Reporter, outcome_text
from distconv.formats.registry import Options
from distconv.observer import Everywhere, Outcome
from distconv.planning.plan import Planned
from distconv.planning.summary import plan_report
from tests.unit.planning.test_plan import CONFIG, facts, planned

RESULT = Path("/mm/release")
ALONE = Everywhere(nbytes=10, elsewhere=lambda: 0)


def report_of(config: Options, found: Planned) -> dict[str, Any]:
    return plan_report(config, found, facts(), RESULT)


def test_a_terminal_gets_lines_of_visible_characters(capsys):
    reporter = Reporter(0)
    reporter.say("a\x1b[2J\nb\udcff")
    reporter.complain("c\rd\ne")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("a\\x1b[2J\nb\\udcff\n", "c\\rd\ne\n")


def test_only_the_first_process_speaks(capsys):
    for rank in (0, 1):
        reporter = Reporter(rank)
        reporter.say("out")
        reporter.complain("err")
        reporter.begin("writing", 10, ALONE)
        reporter.advance(10)
        reporter.end(is_complete=True)
        found = capsys.readouterr()
        if rank:
            assert (found.out, found.err) == ("", "")
        else:
            assert found.out == "out\n"
            assert found.err.startswith("err\n")
            assert "writing" in found.err


def test_a_log_goes_on_while_only_others_work(capsys, monkeypatch):
    monkeypatch.setattr("distconv.cli.show._LOG_SECONDS", 0.01)
    drawn = threading.Event()
    done = iter([0, *range(0, 90, 10)])

    def elsewhere() -> int:
        try:
            return next(done)
        except StopIteration:
            drawn.set()
            return 90

    reporter = Reporter(0)
    reporter.begin("writing", 10, Everywhere(nbytes=100, elsewhere=elsewhere))
    reporter.advance(10)
    assert drawn.wait(60)
    reporter.end(is_complete=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line[9:13] for line in lines[1:10]] == [f" {share:2}%" for share in range(10, 100, 10)]
    assert lines[-1].startswith("writing: 100%, 100 B of 100 B, ")
    assert threading.active_count() == len([each for each in threading.enumerate() if each.name != "regularly"])


def test_a_line_of_a_terminal_is_not_wider_than_that(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    reporter = Reporter(0)
    reporter.begin("comparing copies in the source", 10, ALONE)
    reporter.end(is_complete=True)
    assert {len(line) for line in capsys.readouterr().err.replace("\n", "").split("\r")[1:]} == {39}


def test_a_terminal_has_one_line_of_a_bar_and_a_log_has_them_below_each_other(capsys, monkeypatch):
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        reporter = Reporter(0)
        reporter.begin("writing", 10, ALONE)
        reporter.advance(10)
        reporter.end(is_complete=True)
        reporter.complain("after")
        *lines, after = capsys.readouterr().err.splitlines()
        assert after == "after"
        drawn = [line for line in lines if line]
        assert [line[9:13] for line in drawn][:: len(drawn) - 1] == ["  0%", "100%"]


def test_definitions_are_listed_by_family():
    heads = {
        "b": {"model_types": ["b1", "b2"]},
        "a_variant": {"model_types": ["b1"], "variant_of": "b"},
        "z_lora": {"model_types": ["b1"], "variant_of": "b", "adapters": "only"},
        "a": {"model_types": ["a1"]},
    }
    rows = [line.split("  ") for line in models_text(heads).splitlines()]
    assert [next(filter(None, row)) for row in rows] == ["model", "a", "a_variant", "b", "z_lora"]
    assert "b1, b2" in models_text(heads)
    assert "b1 (name it with +model)" in models_text(heads)
    assert "b1 (adapters: name it with +model)" in models_text(heads)


@pytest.mark.parametrize(("action", "begin"), [("convert", "wrote 1 file, "), ("verify", "verified: 1 file, ")])
def test_a_result_is_one_line_and_notes(action, begin):
    report = report_of(replace(CONFIG, action=action), planned())
    done = {"rank": 0, "bytes_written": 1024, "peak_bytes": 2048, "seconds": {"transfer": 1.0}}
    other = {"rank": 1, "peak_bytes": 1024, "seconds": {"transfer": 2.0}}
    report["files"] = [{"path": "a", "bytes": 3000}]
    report["processes"] = [{**done, "bytes_read": 1024}, {**done, "bytes_read": 2048, **other}]
    text = outcome_text(Outcome(report=report, notes=["remove it"]))
    assert text.startswith(begin)
    assert "on 2 processes in 2.0 s (1.5 KiB/s by all, the slowest was rank 1, the fastest took 1.0 s; " in text
    assert "read 3.0 KiB, wrote 2.0 KiB; peak memory 2.0 KiB per process" in text
    assert text.endswith("\nnote: remove it")


def test_a_reader_that_has_left_misses_the_rest():
    code = "from distconv.cli.show import Reporter; r = Reporter(0); r.say('x' * 10**6); r.say('y'); r.complain('done')"
    read, write = os.pipe()
    os.close(read)
    finished = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(write)
    assert (finished.returncode, finished.stderr) == (0, "done\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    ("streams", "code", "status"),
    [
        # The result is what the user asked for, also where it is a text.
        ("stdout", "r.say('x')", 1),
        ("stderr", "r.complain('x')", 0),
        ("stderr", "r.begin('writing', 9, e); r.advance(5); r.advance(5); r.end(is_complete=True); r.say('wrote')", 0),
    ],
)
def test_a_full_disk_below_the_output(streams, code, status):
    program = (
        "from distconv.cli.show import Reporter\n"
        "from distconv.errors import JobError\n"
        "from distconv.observer import Everywhere\n"
        "e = Everywhere(nbytes=9, elsewhere=int)\n"
        "import sys\n"
        f"r = Reporter(0)\ntry:\n    {code}\nexcept JobError as error:\n    sys.exit(str(error))"
    )
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full if streams == "stdout" else subprocess.PIPE,
            stderr=full if streams == "stderr" else subprocess.PIPE,
            text=True,
            check=False,
        )
    assert found.returncode == status
    if status:
        assert found.stderr == "standard output: No space left on device\n"
    else:
        assert "Traceback" not in found.stdout
