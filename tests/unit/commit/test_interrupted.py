"""A job may be interrupted anywhere in its commit, with nothing that shields it: what it says then is true."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import Mock

import pytest

import distconv.commit
from distconv.commit import swap
from distconv.commit.recovery import clean
from distconv.commit.staging import Staging
from distconv.commit.target import Target
from tests.unit.commit.killed import SCENARIOS
from tests.unit.commit.targets import JOB, plant, target, tree, written

PACKAGE = str(Path(distconv.commit.__file__).parent)


class Interruption:
    """Interrupts before the line, or the bytecode, of a number that the package runs."""

    def __init__(self, number: int, kind: str) -> None:
        self._left = number
        self._kind = kind

    def __call__(self, frame: FrameType, event: str, _: Any) -> Interruption | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = self._kind == "opcode"
        if event == self._kind:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
        return self


@pytest.fixture(params=["exchange", "renames"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "renames":
        monkeypatch.setattr(swap, "exchange", Mock(return_value=False))
    traced = sys.gettrace()
    yield
    sys.settrace(traced)


def interrupted(there: Target, number: int, kind: str) -> tuple[Any, ...] | None:
    """What an interruption says that comes in the commit, or in what follows; None: they do not have so many steps."""
    try:
        with Staging(there) as staging:
            staging.claim(JOB, overwrite=True)
            files = written(staging)
            sys.settrace(Interruption(number, kind))
            sys._getframe().f_trace = None
            staging.commit(files, durable=False)
    except KeyboardInterrupt as interruption:
        return interruption.args
    finally:
        sys.settrace(None)
    return None


def words(text: str, home: Path) -> str:
    """An account without what differs from job to job."""
    return re.sub("-[0-9a-f]{8}", "", text.replace(str(home), ""))


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("scenario", "kind"), [("fresh", "line"), ("again beside training", "opcode"), ("a directory itself", "line")]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a lock that is closed by nobody
def test_interrupted_at_each_step(memory, scenario, kind):
    before, iteration, after = SCENARIOS[scenario]
    said = set()
    for number in range(1, 10**6):
        home = memory / str(number)
        home.mkdir()
        plant(home, before)
        there = target(home if iteration is not None else home / "hf", iteration)
        account = interrupted(there, number, kind)
        works = [*home.glob(".distconv-*")]
        found, visible = tree(home), tree(home, hidden=False)
        text = "".join(account or ())
        if account is None:
            assert found == after
            break
        if text == "nothing was left in the target":
            assert found == before, number
        elif "is in place and complete" in text:
            assert visible == after, number
            assert ("is left of what it replaced" in text) == bool(works), number
        elif "is as it was" in text:
            assert visible == before, number
            assert works, number
        else:
            # Too late, or too early, for words; or not taken back yet.
            assert not text or "could neither be put in place nor be taken back" in text, text
        said.add(words(text, home))
        with Staging(there) as later:
            later.claim(JOB, overwrite=True)
        clean(there.directory)
        assert tree(home) in (before, after), number
        assert "is in place" not in text or tree(home) == after, number
        shutil.rmtree(home)
    result = there.place.relative_to(home)
    assert {"nothing was left in the target", f"/{result} is in place and complete"} <= said
