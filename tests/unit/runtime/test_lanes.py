"""How many threads a process has, and how large their buffers are: enough for file systems that are far away."""

from __future__ import annotations

import os
from itertools import product

import pytest

from distconv.runtime import lanes as module
from distconv.runtime.lanes import Lanes, cores_of, lanes

MIB = 2**20


def of(threads: int, buffer_bytes: int, large_bytes: int, *, at_first: int | None = None, cores: int = 1) -> Lanes:
    return Lanes(
        threads=threads,
        buffer_bytes=buffer_bytes,
        large_bytes=large_bytes,
        threads_at_first=at_first or threads,
        cores=cores,
    )


@pytest.mark.parametrize(("cores", "at_first", "threads"), [(1, 3, 12), (2, 6, 24), (3, 9, 24), (192, 24, 24)])
def test_threads_follow_from_cores(cores, at_first, threads):
    found = lanes(None, None, cores)
    assert (found.threads_at_first, found.threads, found.cores) == (at_first, threads, cores)


def test_all_buffers_together_are_bounded_whatever_the_cores():
    for cores in range(1, 200):
        found = lanes(None, None, cores)
        assert 40 * MIB < found.nbytes <= 48 * MIB
        assert found.large_bytes == 8 * MIB


@pytest.mark.parametrize(("threads", "mib"), [(1, 8), (2, 8), (3, 8), (6, 4), (64, 1)])
def test_buffers_follow_from_threads_that_are_given(threads, mib):
    found = lanes(threads, None, 1)
    assert (found.threads, found.buffer_bytes) == (threads, mib * MIB)


def test_what_is_given_counts():
    for threads, mib in product((1, 7, 100), (1, 3, 64)):
        size = mib * MIB
        assert lanes(threads, mib, 2) == of(threads, size, size, cores=2)
    assert lanes(None, 64, 1) == of(12, 64 * MIB, 64 * MIB, at_first=3)


def test_a_transposition_may_be_all_there_is_room_for():
    assert of(1, 10, 50).nbytes == 100
    assert of(6, 10, 50).nbytes == 120


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Sixteen cores, and a process in a control group `a/b`."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    (tmp_path / "own").write_text("12:cpu:/other\n0::/a/b\n")
    (tmp_path / "groups/a/b").mkdir(parents=True)
    monkeypatch.setattr(module, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(module, "_OWN_GROUP", tmp_path / "own")
    return tmp_path


@pytest.mark.usefixtures("host")
def test_cores_are_those_of_the_host_divided_by_its_processes():
    assert [cores_of(here) for here in (1, 3, 8, 16, 64)] == [16, 5, 2, 1, 1]


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"a/b": "400000 100000"}, 4),
        ({"a": "250000 100000"}, 2),
        ({".": "50000 100000"}, 1),
        ({"a/b": "400000 100000", "a": "300000 100000"}, 3),
        ({"a/b": "max 100000", "a": "3200000 100000"}, 16),
        ({"a/b": "0 0", "a": "", ".": "a b c"}, 16),
    ],
)
def test_cores_are_those_that_every_control_group_allows(host, limits, cores):
    for group, content in limits.items():
        (host / "groups" / group / "cpu.max").write_text(content)
    assert cores_of(1) == cores


@pytest.mark.parametrize("content", [None, "", "1:cpu:/\n"])
def test_without_such_groups_the_topmost_counts(host, content):
    (host / "own").unlink()
    if content is not None:
        (host / "own").write_text(content)
    assert cores_of(1) == 16
    (host / "groups/cpu.max").write_text("200000 100000")
    assert cores_of(1) == 2
