"""Every piece of work has its part of the buffers for itself, and a large part comes in its turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from random import Random

import pytest

from distconv.errors import JobError
from distconv.runtime.lanes import Lanes
from distconv.transfer.buffers import ALIGNMENT, Buffers

BUFFER = 1 << 16
# What most work takes, two buffers, and what takes many: five units of the twelve.
SMALL, LARGE = 2 * BUFFER, 5 * BUFFER
LANES = Lanes(threads=6, buffer_bytes=BUFFER, large_bytes=LARGE // 2, threads_at_first=6, cores=1)


def test_a_part_has_its_size_and_room_to_align_what_is_in_it():
    buffers = Buffers(LANES)
    for size in (1, SMALL, SMALL + 1, LARGE):
        with buffers.taken(size) as memory:
            assert len(memory) == size + ALIGNMENT


def test_one_thread_has_room_for_a_large_part():
    with Buffers(replace(LANES, threads=1)).taken(LARGE) as memory:
        assert len(memory) == LARGE + ALIGNMENT


def test_who_needs_little_has_a_single_unit():
    buffers = Buffers(LANES)
    with ExitStack() as stack:
        for _ in range(2 * LANES.threads):
            stack.enter_context(buffers.taken(BUFFER))


def test_every_thread_has_a_part_at_the_same_time():
    buffers = Buffers(LANES)
    with ExitStack() as stack:
        parts = [stack.enter_context(buffers.taken(SMALL)) for _ in range(LANES.threads)]
        for number, part in enumerate(parts):
            part[:] = bytes([number]) * len(part)
        assert [set(part) for part in parts] == [{number} for number in range(LANES.threads)]


def test_parts_of_any_size_are_nobody_elses_while_they_are_taken():
    buffers, random = Buffers(LANES), Random(3)  # noqa: S311
    sizes = [random.choice((BUFFER, SMALL, SMALL, LARGE // 2, LARGE)) for _ in range(400)]

    def use(number: int) -> bool:
        with buffers.taken(sizes[number]) as memory:
            mark = bytes([number % 251]) * len(memory)
            memory[:] = mark
            threading.Event().wait(0.0002)
            return memory == mark

    with ThreadPoolExecutor(2 * LANES.threads) as pool:
        assert all(pool.map(use, range(len(sizes))))


class Asking:
    """A thread that asks for a part, and has it until it is told to let go."""

    def __init__(self, buffers: Buffers, size: int) -> None:
        self._got, self._let_go = threading.Event(), threading.Event()
        self._buffers, self._size = buffers, size
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with self._buffers.taken(self._size):
            self._got.set()
            assert self._let_go.wait(20)

    def has(self, seconds: float = 20) -> bool:
        """Whether it has its part, or will have within so many seconds."""
        return self._got.wait(seconds)

    def end(self) -> None:
        self._let_go.set()
        self._thread.join(20)


# Long enough for a thread that can have a part to have it.
WAITS = 0.1


def asking(buffers: Buffers, *sizes: int) -> list[Asking]:
    """Threads that ask one after the other."""
    found = []
    for size in sizes:
        found.append(Asking(buffers, size))
        found[-1].has(WAITS)
    return found


def test_units_that_one_claims_who_waits_are_not_for_those_who_ask_later():
    """Of twelve units it claims the first five; who asks later has others meanwhile."""
    buffers = Buffers(LANES)
    first = asking(buffers, *[SMALL] * LANES.threads)
    (large,) = asking(buffers, LARGE)
    for each in (first[0], first[1], first[5]):
        each.end()
    later = asking(buffers, SMALL, SMALL)
    assert [each.has(WAITS) for each in later] == [True, False]
    assert not large.has(0)
    first[2].end()
    assert large.has()
    assert not later[1].has(WAITS)
    large.end()
    assert later[1].has()
    for each in (*later, *first[3:5]):
        each.end()


def test_who_waits_for_a_large_part_claims_one_that_another_has():
    """So two of four have one each, and one of the others has it whenever one of these lets go."""
    buffers = Buffers(LANES)
    found = asking(buffers, *[LARGE] * 4)
    assert [each.has(WAITS) for each in found] == [True, True, False, False]
    for ended in found[:2]:
        before = sum(each.has(0) for each in found)
        ended.end()
        found[-1].has(WAITS)
        assert sum(each.has(WAITS) for each in found) == before + 1
    for each in found[2:]:
        assert each.has()
        each.end()


def test_who_claims_units_has_others_that_become_free_first_and_claims_no_more():
    buffers = Buffers(LANES)
    one, other, _ = found = asking(buffers, LARGE, LARGE, SMALL)
    (waiting,) = asking(buffers, LARGE)
    # It claims those of `one`, as good as those of `other`.
    other.end()
    assert waiting.has()
    one.end()
    more = asking(buffers, LARGE)
    assert more[0].has()
    for each in (waiting, found[-1], *more):
        each.end()


def test_who_asks_later_claims_nothing_while_one_who_asked_before_cannot():
    """Else those who need little would always claim some of what one needs who needs much."""
    buffers = Buffers(LANES)
    first = asking(buffers, *[SMALL] * LANES.threads)
    small, large, last = asking(buffers, SMALL, 2 * LARGE + BUFFER, SMALL)
    first[3].end()
    # What became free is that of who asked first, though another's units are claimed for it.
    assert small.has()
    assert not last.has(WAITS)
    for each in (*first[:3], *first[4:]):
        each.end()
    assert not large.has(WAITS)
    assert not last.has(0)
    small.end()
    assert large.has()
    large.end()
    assert last.has()
    last.end()


def test_no_memory_is_a_failure_that_says_what_to_lower():
    with pytest.raises(JobError, match=r"buffers of [\d,]+ bytes; lower io.threads or io.buffer_mib"):
        Buffers(replace(LANES, threads=2**20, buffer_bytes=2**40, large_bytes=2**40)).taken(1).__enter__()
