"""Errors of the operating system, in any call of it that a job makes: one sentence, never a traceback, and no result.

The calls are replaced by ones that fail once, each time another one of those that the job makes on the files of the
test.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import DistconvError
from tests.checkpoints import hashes
from tests.here import in_every_format, run_here

ERRORS = (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EACCES)
# How many calls of one kind fail, one in each run of a job; all of them where there are fewer.
TRIED = 5
NAMES = (
    "open", "close", "stat", "lstat", "fstat", "statvfs", "access", "listdir", "scandir", "readlink",
    "read", "pread", "preadv", "write", "pwrite", "pwritev", "copy_file_range", "ftruncate", "truncate",
    "fsync", "mkdir", "rmdir", "rename", "replace", "unlink", "link", "symlink",
)  # fmt: skip
STREAMS = ("read", "write", "seek", "flush")


class Faults:
    """Replaces the calls; counts those on files below a directory, and lets the one of a number fail."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self.name, self.number, self.error = "", 0, 0
        self.calls = 0
        self.failed = False

    def tries(self, name: str, number: int, error: int) -> None:
        self.name, self.number, self.error = name, number, error
        self.calls, self.failed = 0, False

    def check(self, name: str, file: Any) -> None:
        if name != self.name or not self._is_ours(file):
            return
        self.calls += 1
        if self.calls == self.number:
            self.failed = True
            raise OSError(self.error, os.strerror(self.error))

    def _is_ours(self, file: Any) -> bool:
        if isinstance(file, int):
            try:
                file = os.path.realpath(f"/proc/self/fd/{file}") if file >= 0 else ""
            except OSError:
                return False
        return isinstance(file, str | bytes | os.PathLike) and os.fsdecode(file).startswith(self._directory)

    def call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **keywords: Any) -> Any:
            if self.name == name:
                file = arguments[0] if arguments else None
                # What is closed by a call that fails is closed all the same.
                if name == "close" and self._is_ours(file):
                    call(*arguments, **keywords)
                    self.check(name, self._directory)
                    return None
                self.check(name, file)
            return call(*arguments, **keywords)

        return checked

    def stream(self, opened: Any, path: Any) -> Any:
        if self.name.startswith("stream.") and self._is_ours(path):
            name = self.name.removeprefix("stream.")
            if hasattr(opened, name):
                call = getattr(opened, name)

                def checked(*arguments: Any) -> Any:
                    self.check(f"stream.{name}", self._directory)
                    return call(*arguments)

                setattr(opened, name, checked)
        return opened


@contextmanager
def replaced(faults: Faults) -> Iterator[None]:
    kept = {name: getattr(os, name) for name in NAMES}
    fdopen, opening = os.fdopen, io.open

    def streams(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def opened(file: Any, *arguments: Any, **keywords: Any) -> Any:
            faults.check(name, file)
            path = os.path.realpath(f"/proc/self/fd/{file}") if isinstance(file, int) else file
            return faults.stream(call(file, *arguments, **keywords), path)

        return opened

    with pytest.MonkeyPatch.context() as patched:
        for name, call in kept.items():
            patched.setattr(os, name, faults.call(name, call))
        patched.setattr(os, "fdopen", streams(fdopen, "fdopen"))
        patched.setattr(builtins, "open", streams(opening, "builtin.open"))
        patched.setattr(io, "open", streams(opening, "builtin.open"))
        yield


JOBS = {
    "to ranks": ({"source": "hf"}, "new"),
    "to published": ({"source": "mm", "target_format": "hf", "reference": "hf"}, "new"),
    "to chunks": ({"source": "mm", "target_format": "dcp", "reference": "hf"}, "new"),
    "from chunks": ({"source": "dcp", "target_format": "hf", "reference": "hf"}, "new"),
    "in place of another": ({"source": "hf", "overwrite": True}, "mm"),
    "verify": ({"source": "hf", "action": "verify"}, "mm"),
    "inspect": ({"source": "mm", "action": "inspect", "reference": "hf"}, ""),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_every_format(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("name", JOBS)
def test_one_sentence_for_each(name, made, tmp_path):
    options, target = JOBS[name]
    options = {key: str(made / value) if key in ("source", "reference") else value for key, value in options.items()}
    faults, errors = Faults(tmp_path.parent.parent), cycle(ERRORS)
    before = hashes(made)

    def run(call: str, number: int) -> str | None:
        """What a job says whose call of this number fails; `None` if nothing."""
        world = tmp_path / "world"
        shutil.rmtree(world, ignore_errors=True)
        if target == "mm":
            shutil.copytree(made / "mm", world / "mm")
        else:
            world.mkdir()
        faults.tries(call, number, next(errors))
        try:
            with replaced(faults):
                run_here(**options, **({"target": str(world / target)} if target else {}))
        except DistconvError as error:
            return str(error)
        return None

    def left() -> dict[str, str]:
        """What is in the target, begun things apart."""
        found = hashes(tmp_path / "world" / target) if (tmp_path / "world" / target).exists() else {}
        return {path: each for path, each in found.items() if not path.startswith(".")}

    wrong = []
    tried = 0
    assert run("", 0) is None
    done = left()
    undone = hashes(made / target) if target == "mm" else {}
    for call in (*NAMES, *(f"stream.{each}" for each in STREAMS), "builtin.open", "fdopen"):
        assert run(call, 0) is None
        calls = faults.calls
        for number in range(1, calls + 1, max(calls // TRIED, 1)):
            said = run(call, number)
            tried += 1
            assert faults.failed
            if left() != done and (said is None or left() != undone):
                wrong.append(f"{call} {number} of {calls}: the target is neither as it was nor done: {said}")
            if said is not None and ("Traceback" in said or "unexpected" in said or said.count("\n") > 1):
                wrong.append(f"{call} {number} of {calls}: {said[-1500:]}")
    assert not wrong, "\n\n".join(wrong)
    assert tried > 50
    assert hashes(made) == before
