"""Every piece of work has its part of the buffers for itself, and a large part comes in its turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random

import pytest

from distconv.errors import JobError
from distconv.runtime.lanes import Lanes
from distconv.transfer.buffers import ALIGNMENT, Buffers

SMALL, LARGE = 1 << 12, 1 << 14
LANES = Lanes(threads=6, buffer_bytes=SMALL, large_bytes=LARGE)


def test_a_part_holds_two_buffers():
    buffers = Buffers(LANES)
    for size in (SMALL, LARGE):
        with buffers.taken(size) as memory:
            assert len(memory) == 2 * size + ALIGNMENT


def test_one_thread_has_room_for_a_large_part():
    with Buffers(Lanes(threads=1, buffer_bytes=SMALL, large_bytes=LARGE)).taken(LARGE) as memory:
        assert len(memory) == 2 * LARGE + ALIGNMENT


def test_every_thread_has_a_part_at_the_same_time():
    buffers = Buffers(LANES)
    with ExitStack() as stack:
        parts = [stack.enter_context(buffers.taken(SMALL)) for _ in range(LANES.threads)]
        for number, part in enumerate(parts):
            part[:] = bytes([number]) * len(part)
        assert [set(part) for part in parts] == [{number} for number in range(LANES.threads)]


def test_parts_of_any_size_are_nobody_elses_while_they_are_taken():
    buffers, random = Buffers(LANES), Random(3)  # noqa: S311
    sizes = [random.choice((SMALL, SMALL, LARGE)) for _ in range(300)]

    def use(number: int) -> bool:
        with buffers.taken(sizes[number]) as memory:
            mark = bytes([number % 251]) * len(memory)
            memory[:] = mark
            threading.Event().wait(0.0002)
            return memory == mark

    with ThreadPoolExecutor(LANES.threads) as pool:
        assert all(pool.map(use, range(len(sizes))))


def test_who_waits_for_a_large_part_is_not_passed_by_those_who_want_small_ones():
    buffers, order, asked = Buffers(LANES), [], threading.Event()

    def take(size: int) -> None:
        asked.set()
        with buffers.taken(size):
            order.append(size)

    with ThreadPoolExecutor(2) as pool:
        with ExitStack() as stack:
            for _ in range(LANES.threads - 1):
                stack.enter_context(buffers.taken(SMALL))
            large = pool.submit(take, LARGE)
            asked.wait()
            # Long enough for it to ask first; were it not, there would be nothing to see.
            threading.Event().wait(0.05)
            small = pool.submit(take, SMALL)
            threading.Event().wait(0.05)
            assert order == []
        large.result()
        small.result()
    assert sorted(order) == [SMALL, LARGE]


def test_no_memory_is_a_failure_that_says_what_to_lower():
    with pytest.raises(JobError, match=r"buffers of [\d,]+ bytes; lower io.threads or io.buffer_mib"):
        Buffers(Lanes(threads=2**20, buffer_bytes=2**40, large_bytes=2**40)).taken(1).__enter__()
