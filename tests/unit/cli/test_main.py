"""The exit status of a command line that is interrupted before anything has begun."""

from __future__ import annotations

import sys

import pytest

from distconv.cli import main
from distconv.runtime.launch import Launch


@pytest.mark.parametrize(("watch", "status"), [("watch=true", 0), ("watch=false", 130)])
def test_an_interruption_is_the_end_of_a_watch_that_is_still_to_begin(watch, status, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "launch", lambda _: Launch(means="single", rank=0, size=1))
    monkeypatch.setattr(sys, "argv", ["distconv", "sources=run/iter_*", "target=hf/{name}", watch])
    monkeypatch.setattr(main, "connect", interrupted)
    monkeypatch.setattr(main, "end_politely", lambda: None)
    assert main.main() == status
    assert ("interrupted" in capsys.readouterr().err) == bool(status)
