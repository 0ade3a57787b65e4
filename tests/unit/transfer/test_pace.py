"""Few threads work at first, and more while the cores of the process are idle."""

from __future__ import annotations

import pytest

from distconv.runtime.lanes import Lanes, lanes
from distconv.transfer.pace import Pace


class Cores:
    """Clocks of a process with two cores, of which it uses a part."""

    def __init__(self, part: float) -> None:
        self.part = part
        self.now = self.used = 100.0

    def go_on(self, seconds: float = 0.05) -> None:
        self.now += seconds
        self.used += 2 * self.part * seconds


def paced(cores: Cores, given: Lanes | None = None) -> Pace:
    return Pace(given or lanes(None, None, 2), lambda: cores.now, lambda: cores.used)


def threads_after(pace: Pace, cores: Cores, windows: int, *, importing: bool = False) -> int:
    for _ in range(windows):
        cores.go_on()
        pace.learn(importing=importing)
    return pace.threads


def test_threads_become_more_while_cores_are_idle_and_are_never_too_many():
    cores = Cores(0.1)
    pace = paced(cores)
    assert pace.threads == 6
    assert [threads_after(pace, cores, 1) for _ in range(5)] == [9, 13, 19, 24, 24]


@pytest.mark.parametrize("part", [0.7, 1.0])
def test_threads_that_keep_the_cores_busy_are_enough(part):
    cores = Cores(part)
    pace = paced(cores)
    assert threads_after(pace, cores, 10) == 6
    cores.part = 0.1
    assert threads_after(pace, cores, 1) == 9
    # Never fewer: what has waited once will wait again.
    cores.part = part
    assert threads_after(pace, cores, 10) == 9


def test_an_import_that_one_thread_does_says_nothing_of_file_systems():
    cores = Cores(0.5)
    pace = paced(cores)
    assert threads_after(pace, cores, 10, importing=True) == 6
    assert threads_after(pace, cores, 1) == 9


def test_moments_are_too_short_to_see_anything():
    cores = Cores(0.0)
    pace = paced(cores)
    for _ in range(9):
        cores.go_on(0.002)
        pace.learn(importing=False)
    assert pace.threads == 6
    cores.go_on(0.003)
    pace.learn(importing=False)
    assert pace.threads == 9


def test_as_many_threads_as_are_asked_for_work_from_the_beginning():
    cores = Cores(0.0)
    pace = paced(cores, lanes(5, None, 2))
    assert pace.threads == 5
    assert threads_after(pace, cores, 10) == 5
