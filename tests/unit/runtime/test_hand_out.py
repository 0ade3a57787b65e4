"""Parts that are handed out: everyone's values in order, everyone's problems together, from any number of processes."""

from __future__ import annotations

import _thread
import threading
from typing import Any

import pytest

from distconv.errors import InputError, JobError
from distconv.runtime.agreement import on_all, on_first, on_first_with_hand_out
from distconv.runtime.hand_out import HandOut, attempt_parts, here, on_threads
from distconv.runtime.processes import Processes
from tests.unit.runtime.test_agreement import HOST, the_error
from tests.unit.threads import as_processes


def double(part: int) -> int:
    return 2 * part


def only_even(part: int) -> int:
    if part % 2:
        raise InputError([f"{part} is odd", f"{part} is not even"])
    return part


def broken(part: int) -> int:
    return 1 // part


TASKS = (double, only_even, broken)


def helped(count: int, phase: Any, threads: int = 1) -> list[Any]:
    return as_processes(count, lambda processes: on_first_with_hand_out(processes, phase, TASKS, threads))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("parts", [0, 1, 4, 11])
def test_values_come_in_the_order_of_the_parts(count, parts, threads):
    def phase(hand_out: HandOut) -> list[Any]:
        doubled = hand_out(double, list(range(parts)))
        return [doubled, hand_out(only_even, doubled)]

    expected = here(double, list(range(parts)))
    assert expected == [2 * part for part in range(parts)]
    assert helped(count, phase, threads) == [[expected, expected]] * count


def test_every_process_does_its_share():
    ran: list[int] = []

    def run(processes: Processes) -> Any:
        def tell(part: int) -> int:
            ran.append(processes.rank)
            return part

        return on_first_with_hand_out(processes, lambda hand_out: hand_out(tell, list(range(9))), (tell,), 1)

    assert as_processes(3, run) == [list(range(9))] * 3
    assert sorted(ran) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_threads_share_the_parts_of_a_process():
    met = threading.Barrier(2, timeout=30)
    assert [value for _, value in attempt_parts(lambda _: met.wait() in (0, 1), [0, 1], threads=2)] == [True, True]


@pytest.mark.parametrize("count", [1, 3])
def test_the_problems_of_all_parts_are_told_together(count):
    problems = ["1 is odd", "1 is not even", "3 is odd", "3 is not even"]
    error = the_error(helped(count, lambda hand_out: hand_out(only_even, [0, 1, 2, 3])))
    assert isinstance(error, InputError)
    assert error.problems == problems
    with pytest.raises(InputError) as alone:
        here(only_even, [0, 1, 2, 3])
    assert alone.value.problems == problems


def test_a_defect_names_its_rank():
    error = the_error(helped(2, lambda hand_out: hand_out(broken, [1, 0])))
    assert isinstance(error, JobError)
    assert str(error).startswith(f"rank 1 on {HOST}: unexpected ZeroDivisionError")


def test_the_phase_may_go_on_after_a_problem_and_the_job_after_the_phase():
    def phase(hand_out: HandOut) -> Any:
        with pytest.raises(InputError):
            hand_out(only_even, [1])
        return hand_out(double, [4])

    def run(processes: Processes) -> Any:
        first = on_first_with_hand_out(processes, phase, TASKS, 1)
        return first, on_first(processes, lambda: "then"), on_all(processes, lambda: processes.rank, int)[1]

    assert as_processes(3, run) == [([8], "then", [0, 1, 2])] * 3


def test_the_first_error_in_the_order_of_the_parts_is_raised():
    both = threading.Barrier(2)

    def fails(part: int) -> int:
        both.wait()
        raise JobError(f"part {part}")

    with pytest.raises(JobError, match="part 0"):
        on_threads(fails, [0, 1], 2)


def test_an_interruption_does_not_wait_for_a_part_that_hangs():
    """As of a file system that does not answer: no thread can be interrupted but the first one."""
    hangs, goes_on = threading.Event(), threading.Event()

    def part(number: int) -> int:
        if number == 0:
            hangs.set()
            goes_on.wait()
        elif hangs.wait(10):
            _thread.interrupt_main()
        return number

    with pytest.raises(KeyboardInterrupt):
        on_threads(part, [0, 1], 2)
    (left,) = (each for each in threading.enumerate() if each.name == "parts")
    # What is left does not keep the interpreter from ending either.
    assert left.daemon
    goes_on.set()
    left.join()
