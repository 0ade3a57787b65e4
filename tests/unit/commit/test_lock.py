"""One process at a time has a lock, and a process that has ended has none, however it ended."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from distconv.commit import lock as lock_module
from distconv.commit.lock import Holder, Lock, holder, take


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "lock"


@pytest.fixture(params=["kernel", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with locks, and one without."""
    if request.param == "file":
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    return request.param


def taken(path: Path, work: str = "job-1") -> Lock:
    found = take(path, work)
    assert isinstance(found, Lock), found
    return found


@pytest.fixture
def other(path, kind) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    without = "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOSYS, '')\nfcntl.flock = flock\n"
    code = (without if kind == "file" else "") + (
        "import sys, time\nfrom pathlib import Path\nfrom distconv.commit.lock import take\n"
        "lock = take(Path(sys.argv[1]), 'job-other')\nprint(lock, flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        assert "Lock object" in process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.usefixtures("kind")
def test_a_lock_is_held_until_it_is_released_and_then_there_is_no_file(path):
    lock = taken(path)
    found = take(path, "job-2")
    assert isinstance(found, Holder)
    assert found == holder(path)
    assert (found.work, found.pid, found.host, found.certain) == ("job-1", os.getpid(), socket.gethostname(), True)
    assert str(found).startswith(f"process {os.getpid()} on {socket.gethostname()} since 2")
    lock.release()
    assert not path.exists()
    assert holder(path) is None
    taken(path).release()


def test_a_process_that_runs_is_named(path, other):
    found = take(path, "job-2")
    assert isinstance(found, Holder)
    assert (found.work, found.pid, found.certain) == ("job-other", other.pid, True)
    assert holder(path) == found


def test_a_process_that_was_killed_has_no_lock(path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert path.exists()
    assert holder(path) is None
    lock = taken(path)
    found = holder(path)
    assert found is not None
    assert found.pid == os.getpid()
    lock.release()
    assert list(path.parent.iterdir()) == []


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.EOPNOTSUPP, "")))


def own_record(path: Path) -> dict[str, object]:
    lock = taken(path)
    content: dict[str, object] = json.loads(path.read_bytes())
    lock.release()
    return content


@pytest.mark.parametrize(
    ("change", "stale", "certain"),
    [
        ({}, False, True),
        ({"pid": 2**22 + 1}, True, None),
        # Its number has been given to another process.
        ({"began": "1"}, True, None),
        # The machine has been started again.
        ({"boot": "another"}, True, None),
        # What a number means in another container, or whether another machine works, nobody knows.
        ({"namespace": "pid:[1]", "pid": 2**22 + 1}, False, False),
        ({"host": "another", "pid": 2**22 + 1}, False, False),
    ],
)
def test_without_locks_of_the_kernel_only_who_is_known_to_be_dead_has_none(path, monkeypatch, change, stale, certain):
    without_locks(monkeypatch)
    path.write_text(json.dumps({**own_record(path), **change}))
    found = take(path, "job-2")
    if stale:
        assert isinstance(found, Lock)
        found.release()
        assert list(path.parent.iterdir()) == []
    else:
        assert isinstance(found, Holder)
        assert found.certain == certain
        assert holder(path) == found


def test_a_stale_lock_that_another_has_taken_first_is_left_to_him(path, monkeypatch):
    without_locks(monkeypatch)
    dead = json.dumps({**own_record(path), "pid": 2**22 + 1})
    path.write_text(dead)
    rename, faster = os.rename, []

    def slow(old: Path, new: Path) -> None:
        if not faster:
            faster.append(1)
            path.unlink()
            faster.append(taken(path, "job-faster"))
        rename(old, new)

    monkeypatch.setattr(os, "rename", slow)
    found = take(path, "job-2")
    assert isinstance(found, Holder)
    assert found.work == "job-faster"
    assert [each.name for each in path.parent.iterdir()] == ["lock"]
    faster[1].release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "1"}', '{"pid": 1, "host": 2}'])
def test_a_lock_file_that_names_nobody_is_held_where_only_the_file_counts(path, monkeypatch, content):
    path.write_text(content)
    assert holder(path) is None
    taken(path).release()
    without_locks(monkeypatch)
    path.write_text(content)
    found = take(path, "job-2")
    assert isinstance(found, Holder)
    assert not found.certain
    assert path.read_text() == content


def test_a_lock_that_changes_hands_meanwhile_is_looked_at_again(path, monkeypatch):
    """A file that has been removed by who held it locks nothing."""
    first = taken(path)
    real = fcntl.flock
    locked: list[int] = []

    def flock(stream: int, kind: int) -> None:
        locked.append(kind)
        if len(locked) == 1:
            first.release()
        real(stream, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = taken(path)
    assert len(locked) == 2
    assert isinstance(take(path, "job-3"), Holder)
    second.release()
    assert not path.exists()


def test_the_lock_of_another_is_not_removed(path):
    first = taken(path)
    path.unlink()
    second = taken(path)
    first.release()
    assert isinstance(take(path, "job-3"), Holder)
    second.release()


def test_a_lock_that_cannot_be_written_is_not_left(path, monkeypatch):
    monkeypatch.setattr(lock_module, "_own", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        take(path, "job-1")
    assert not path.exists()


def test_the_lock_of_another_user_tells_its_holder(path, monkeypatch):
    lock = taken(path)
    found = holder(path)
    real = builtins.open

    def closed(name: Path, mode: str, **options: Any) -> Any:
        if mode == "r+b":
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return real(name, mode, **options)

    monkeypatch.setattr(builtins, "open", closed)
    assert take(path, "job-2") == found
    lock.release()
    path.touch()
    with pytest.raises(PermissionError):
        take(path, "job-2")


def test_a_lock_needs_its_directory(path):
    with pytest.raises(FileNotFoundError):
        take(path / "none" / "lock", "job-1")
    assert holder(path / "none" / "lock") is None


def test_looking_for_the_holder_keeps_nobody_from_the_lock(path):
    path.touch()
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        found = take(path, "job-1")
        assert isinstance(found, Holder)
    taken(path).release()


def test_equal_holders_are_equal_however_sure_one_is(path):
    lock = taken(path)
    found = holder(path)
    assert found is not None
    assert dataclasses.replace(found, certain=False) == found
    lock.release()
