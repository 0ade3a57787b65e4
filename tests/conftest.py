"""Fixtures for all tests: the command line, run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from distconv.cli.main import main


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the command line left: exit status, standard output and standard error."""

    status: int
    out: str
    err: str


@pytest.fixture
def distconv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `python -m distconv` with these arguments in this process, as the only process of a job."""
    for name in ("RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["distconv", *map(str, arguments)])
        try:
            status = main()
        except SystemExit as leave:
            status = int(leave.code or 0)
        captured = capsys.readouterr()
        return Outcome(status=status, out=captured.out, err=captured.err)

    return run
