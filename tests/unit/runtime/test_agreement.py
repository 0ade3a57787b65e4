"""A failure anywhere is the same error everywhere, and blames those who failed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from distconv.errors import DistconvError, InputError, JobError, LostError, StoppedError
from distconv.runtime.agreement import on_all, on_first, on_first_with_hand_out
from distconv.runtime.processes import Processes, SingleProcess
from distconv.runtime.progress import reached
from tests.unit.threads import as_processes

HOST = socket.gethostname()


def failing(*ranks: int, error: Callable[[int], Exception]) -> Callable[[Processes], Any]:
    """A phase on all processes that fails on some of them."""

    def run(processes: Processes) -> Any:
        def phase() -> int:
            if processes.rank in ranks:
                raise error(processes.rank)
            return processes.rank

        return on_all(processes, phase, lambda value: value)

    return run


def the_error(outcomes: list[Any]) -> DistconvError:
    """The error of all processes, which must be the same."""
    first = outcomes[0]
    assert isinstance(first, DistconvError), first
    for each in outcomes:
        assert type(each) is type(first)
        assert str(each) == str(first)
    return first


def test_a_phase_of_the_first_runs_once_and_everyone_gets_its_result():
    ran: list[int] = []

    def run(processes: Processes) -> Any:
        return on_first(processes, lambda: ran.append(processes.rank) or {"files": [1, 2]})

    assert as_processes(4, run) == [{"files": [1, 2]}] * 4
    assert ran == [0]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(InputError(["a is wrong", "b is wrong"]), InputError), (JobError("disk full"), JobError)],
)
def test_an_error_of_the_first_is_the_error_of_all(error, kind):
    def run(processes: Processes) -> Any:
        def phase() -> None:
            raise error

        return on_first(processes, phase)

    found = the_error(as_processes(3, run))
    assert type(found) is kind
    assert str(found) == str(error)
    if isinstance(found, InputError):
        assert found.problems == ["a is wrong", "b is wrong"]


def test_a_defect_of_the_first_carries_its_traceback_to_all():
    def broken_phase() -> None:
        raise ZeroDivisionError("by nought")

    found = the_error(as_processes(2, lambda processes: on_first(processes, broken_phase)))
    assert isinstance(found, JobError)
    assert str(found).startswith("unexpected ZeroDivisionError: by nought\nTraceback (most recent call last):")
    assert "in broken_phase" in str(found)


def test_a_phase_of_all_gives_each_its_value_and_what_everyone_tells():
    def run(processes: Processes) -> Any:
        return on_all(processes, lambda: {processes.rank}, lambda value: [*value, processes.size])

    assert as_processes(3, run) == [({rank}, [[0, 3], [1, 3], [2, 3]]) for rank in range(3)]


def test_a_failure_is_named_by_rank_and_host():
    found = the_error(as_processes(4, failing(2, error=lambda rank: JobError(f"reading x{rank}"))))
    assert isinstance(found, JobError)
    assert str(found) == f"rank 2 on {HOST}: reading x2"


def test_every_process_that_failed_is_named():
    found = the_error(as_processes(4, failing(1, 3, error=lambda rank: JobError(f"reading x{rank}"))))
    assert str(found) == f"rank 1 on {HOST}: reading x1\nrank 3 on {HOST}: reading x3"


@pytest.mark.parametrize("ranks", [(0,), (2,), (0, 1, 2)])
def test_wrong_input_is_wrong_input_whoever_found_it(ranks):
    found = the_error(as_processes(3, failing(*ranks, error=lambda _: InputError(["a is wrong", "b is wrong"]))))
    assert isinstance(found, InputError)
    assert found.problems == ["a is wrong", "b is wrong"]


def test_different_wrong_inputs_are_told_apart_by_rank():
    found = the_error(as_processes(3, failing(0, 2, error=lambda rank: InputError([f"{rank} a", f"{rank} b"]))))
    assert isinstance(found, JobError)
    assert str(found).splitlines() == [f"rank {rank} on {HOST}: {rank} {what}" for rank in (0, 2) for what in "ab"]


def test_wrong_input_beside_a_failure_is_a_failure():
    errors = {0: InputError("a is wrong"), 1: JobError("disk full")}
    found = the_error(as_processes(2, failing(0, 1, error=errors.__getitem__)))
    assert isinstance(found, JobError)
    assert str(found) == f"rank 0 on {HOST}: a is wrong\nrank 1 on {HOST}: disk full"


def test_who_only_stopped_for_another_is_not_blamed():
    errors = {0: StoppedError("stopped"), 1: JobError("disk full"), 2: StoppedError("stopped")}
    found = the_error(as_processes(3, failing(0, 1, 2, error=errors.__getitem__)))
    assert str(found) == f"rank 1 on {HOST}: disk full"
    errors[1] = InputError("a is wrong")
    assert isinstance(the_error(as_processes(3, failing(0, 1, 2, error=errors.__getitem__))), InputError)


def test_if_everyone_stopped_that_is_what_is_told():
    found = the_error(as_processes(2, failing(0, 1, error=lambda _: StoppedError("stopped"))))
    assert str(found) == f"rank 0 on {HOST}: stopped\nrank 1 on {HOST}: stopped"


def test_a_defect_carries_its_traceback_and_its_rank():
    found = the_error(as_processes(2, failing(1, error=lambda _: KeyError("lost"))))
    assert isinstance(found, JobError)
    assert str(found).startswith(f"rank 1 on {HOST}: unexpected KeyError: 'lost'\nTraceback (most recent call last):")
    assert "in phase" in str(found)


def test_the_others_hear_of_a_failure_while_they_still_work():
    stopped = threading.Event()

    def run(processes: Processes) -> Any:
        def phase() -> None:
            if processes.rank == 1:
                raise JobError("disk full")
            until = time.monotonic() + 5
            while time.monotonic() < until:
                if processes.alarmed():
                    stopped.set()
                    raise StoppedError("stopped because another process failed")
                time.sleep(0.001)

        return on_all(processes, phase, lambda _: None)

    assert str(the_error(as_processes(3, run))) == f"rank 1 on {HOST}: disk full"
    assert stopped.is_set()


def test_a_phase_without_a_failure_raises_no_alarm():
    def run(processes: Processes) -> bool:
        on_all(processes, lambda: 1, lambda value: value)
        return processes.alarmed()

    assert as_processes(2, run) == [False, False]


def test_an_interrupt_is_not_made_into_a_failure():
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_all(SingleProcess(), interrupted, lambda _: None)


def test_a_failure_to_tell_the_value_leaves_nobody_waiting():
    def run(processes: Processes) -> Any:
        return on_all(processes, lambda: processes.rank, lambda rank: 1 // (1 - rank))

    the_error(as_processes(2, run, patience=0.2))


class _ClosesBadly:
    """What torch does with a file whose writing was interrupted."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("unexpected position")


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interruption_is_one_whatever_else_it_leads_to(wrapped):
    """Not a failure that this process would tell the others, and wait for those who were interrupted."""

    def phase() -> None:
        try:
            with _ClosesBadly():
                raise KeyboardInterrupt
        except RuntimeError as error:
            if wrapped:
                raise JobError("writing") from error
            raise

    with pytest.raises(KeyboardInterrupt):
        on_all(SingleProcess(), phase, lambda value: value)
    with pytest.raises(KeyboardInterrupt):
        on_first(SingleProcess(), phase)


def test_an_error_of_the_system_is_a_sentence_with_the_phase_and_the_file():
    def failing(*arguments: Any) -> Callable[[Processes], Any]:
        def run(processes: Processes) -> Any:
            def phase() -> None:
                reached("/ckpt/last")
                raise OSError(*arguments)

            return on_first(processes, phase, "reading the headers")

        return run

    found = the_error(as_processes(2, failing(5, "Input/output error", "/ckpt/a")))
    assert (type(found), str(found)) == (JobError, "reading the headers: /ckpt/a: Input/output error")
    # Calls on a descriptor do not know its file.
    found = the_error(as_processes(2, failing(116, "Stale file handle")))
    assert str(found) == "reading the headers: /ckpt/last: Stale file handle"


def test_a_lack_of_memory_is_a_sentence():
    def run(processes: Processes) -> Any:
        def phase() -> None:
            raise MemoryError("Unable to allocate 32.0 TiB")

        return on_first(processes, phase, "planning")

    assert str(the_error(as_processes(2, run))).startswith("planning: not enough memory (Unable to allocate 32.0 TiB)")


@pytest.mark.parametrize(
    "run",
    [
        on_first,
        lambda processes, phase: on_all(processes, phase, lambda value: value),
        lambda processes, phase: on_first_with_hand_out(processes, lambda _: phase(), [], 1),
    ],
)
def test_a_loss_is_agreed_on_with_nobody(run):
    """Those who could answer may be the ones that are lost."""

    class Alone(SingleProcess):
        def share(self, value: Any) -> Any:  # noqa: ARG002
            pytest.fail("who is lost is asked")

    def phase() -> None:
        raise LostError("rank 1 is silent")

    with pytest.raises(LostError, match=r"^rank 1 is silent$"):
        run(Alone(), phase)


def test_what_a_process_does_is_known_to_the_others():
    single = SingleProcess()
    on_first(single, lambda: None, "planning")
    assert single.progress.beat().doing == "planning"
