"""Processes say to each other what they should, and nobody waits for one that has left."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distconv.errors import InputError, JobError, LostError
from distconv.runtime.mpi_processes import MpiProcesses
from distconv.runtime.processes import SingleProcess
from distconv.runtime.progress import Progress
from distconv.runtime.store_processes import StoreProcesses
from tests.unit.threads import on_threads


def test_a_single_process_talks_to_itself():
    single = SingleProcess()
    assert (single.rank, single.size) == (0, 1)
    assert single.share({"a": 1}) == {"a": 1}
    assert single.collect({"a": 1}) == [{"a": 1}]
    single.raise_alarm()
    assert not single.alarmed()
    single.close()


class MemoryStore:
    """torch's key-value store: `get` waits for the key."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self.values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self.values, timeout=5), f"nobody sets {key}"
            return self.values[key]

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
            return int(self.values[key])

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def check(self, keys: list[str]) -> bool:
        with self._changed:
            return all(key in self.values for key in keys)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store that `StoreProcesses` finds in place of torch's."""
    found = MemoryStore()
    module = ModuleType("torch.distributed.rendezvous")
    module.rendezvous = lambda url, rank, size, timeout: iter([(found, rank, size)])  # noqa: ARG005
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return found


@pytest.mark.usefixtures("store")
def test_processes_with_a_store_share_and_collect():
    def run(rank: int) -> list[Any]:
        found = StoreProcesses(rank, 3)
        said = [found.share({"plan": [1, None, "é"]} if rank == 0 else None)]
        said += [found.collect([rank, number]) for number in range(3)]
        said.append(found.share("done" if rank == 0 else "not heard"))
        found.close()
        return said

    expected = [{"plan": [1, None, "é"]}, *([[rank, number] for rank in range(3)] for number in range(3)), "done"]
    assert on_threads(3, run) == [expected] * 3


@pytest.mark.usefixtures("store")
def test_the_alarm_is_heard_without_waiting():
    one, other = StoreProcesses(0, 2), StoreProcesses(1, 2)
    assert not one.alarmed()
    other.raise_alarm()
    assert one.alarmed()
    assert other.alarmed()


@pytest.mark.usefixtures("store")
def test_the_alarm_is_over_when_all_know_of_it():
    def run(rank: int) -> list[bool]:
        found = StoreProcesses(rank, 2)
        if rank == 1:
            found.raise_alarm()
        found.collect(rank)
        said = [found.alarmed()]
        found.share(None)
        if rank == 0:
            found.raise_alarm()
        said.append(found.alarmed() or rank == 1)
        found.close()
        return said

    assert on_threads(2, run) == [[False, True]] * 2


@pytest.mark.usefixtures("store")
def test_the_process_that_may_host_the_store_leaves_last():
    left: list[int] = []

    def run(rank: int) -> None:
        found = StoreProcesses(rank, 3)
        time.sleep(0.02 * rank)
        found.close()
        left.append(rank)

    assert on_threads(3, run) == [None] * 3
    assert left[-1] == 0


@pytest.mark.usefixtures("store")
def test_a_restarted_job_does_not_see_what_was_said_before(monkeypatch):
    StoreProcesses(0, 2).raise_alarm()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not StoreProcesses(0, 2).alarmed()


def test_an_mpi4py_of_another_mpi_is_refused(monkeypatch):
    world = SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1, Dup=lambda: world)
    module = ModuleType("mpi4py")
    module.MPI = SimpleNamespace(COMM_WORLD=world, Query_thread=lambda: 0, THREAD_SERIALIZED=2)
    monkeypatch.setitem(sys.modules, "mpi4py", module)
    with pytest.raises(InputError, match="started 4 processes, but mpi4py sees 1: mpi4py belongs to another MPI"):
        MpiProcesses(4)
    assert (MpiProcesses(1).rank, MpiProcesses(1).size) == (0, 1)


def test_without_mpi4py_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError, match=r"mpi4py cannot be imported \(.*\): install it for the MPI whose mpirun you"):
        MpiProcesses()


def test_processes_that_lack_an_address_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(InputError, match=r"the processes cannot find each other: .*MASTER_PORT"):
        StoreProcesses(0, 2)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("leaving", range(3))
def test_nobody_waits_for_a_process_that_has_left(leaving):
    """Be it to hear of rank 0, or of all; and then they can close without it."""

    def run(rank: int) -> None:
        found = StoreProcesses(rank, 3)
        if rank == leaving:
            found.abandon("KeyboardInterrupt: ")
            return
        try:
            found.collect(rank)
        finally:
            found.close()

    outcomes = on_threads(3, run)
    assert outcomes.pop(leaving) is None
    for error in outcomes:
        assert isinstance(error, JobError)
        assert str(error) == f"rank {leaving} has left the job: KeyboardInterrupt: "


@pytest.mark.usefixtures("store")
def test_what_was_said_before_somebody_left_is_heard():
    one, other = StoreProcesses(0, 2), StoreProcesses(1, 2)
    assert one.share(3) == 3
    one.abandon("")
    assert other.share(None) == 3
    assert other.alarmed()


def silent_after(progress: Progress, seconds: float) -> None:
    """Move for so long, and then no more."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        progress.step()
        time.sleep(0.02)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_stands_still_is_given_up(silent):
    """Its thread that speaks with the others lives, as when a system call hangs."""
    over = threading.Event()

    def run(rank: int) -> Any:
        found = StoreProcesses(rank, 3, patience=0.5)
        found.share(None)
        if rank == silent:
            found.progress.begin("writing")
            found.progress.reach("/a")
            over.wait(20)
            return None
        try:
            found.collect(rank)
        except JobError:
            if found.has_to_tell():
                tellers.append(rank)
            found.desert("lost")
            over.set()
            raise
        return None

    tellers: list[int] = []
    outcomes = on_threads(3, run)

    assert outcomes[silent] is None
    assert tellers == [min({0, 1, 2} - {silent})]
    lost = outcomes[tellers[0]]
    assert isinstance(lost, LostError)
    assert str(lost).startswith(f"rank {silent} on ")
    assert "no progress in 0.5 s; it was last seen writing: /a; " in str(lost)


@pytest.mark.usefixtures("store")
def test_who_moves_is_waited_for_however_long_it_takes():
    def run(rank: int) -> list[Any]:
        found = StoreProcesses(rank, 2, patience=0.5)
        if rank == 1:
            silent_after(found.progress, 2)
        said = found.collect(rank)
        found.close()
        return said

    assert on_threads(2, run) == [[0, 1]] * 2


def test_a_store_that_is_gone_is_one_sentence(store, monkeypatch):
    one, other = StoreProcesses(0, 2), StoreProcesses(1, 2)

    def gone(*_: object) -> None:
        raise RuntimeError("failed to recv, got 0 bytes\nException raised from recvBytes at …")

    monkeypatch.setattr(store, "check", gone)
    for found in (other, one):
        with pytest.raises(LostError, match=r"^the connection to rank 0 is broken \(failed to recv, got 0 bytes\): "):
            found.share(None)
        found.desert("lost")


def test_a_store_that_hangs_is_not_waited_for_for_ever(store, monkeypatch):
    """Its host is stopped: calls to it never return."""
    found = [StoreProcesses(rank, 2, patience=0.5) for rank in range(2)]
    time.sleep(0.5)
    over = threading.Event()

    def hanging(*_: object) -> None:
        over.wait(20)
        raise RuntimeError("the host is gone")

    for name in ("check", "set", "add", "multi_get"):
        monkeypatch.setattr(store, name, hanging)

    with pytest.raises(LostError, match=r"^rank 0 on .*: no progress in 0\.5 s"):
        found[1].share(None)
    over.set()


@pytest.mark.usefixtures("store")
def test_the_first_hears_what_the_others_have_moved():
    heard = threading.Event()

    def run(rank: int) -> Any:
        found = StoreProcesses(rank, 3, patience=1)
        found.share(None)
        found.begin_to_move()
        found.progress.move(10 * rank)
        end = time.monotonic() + 20
        while rank == 0 and time.monotonic() < end and found.moved_elsewhere() != 30:
            time.sleep(0.02)
        moved = found.moved_elsewhere()
        if rank == 0:
            heard.set()
        while not heard.wait(0.02) and time.monotonic() < end:
            found.progress.step()
        found.collect(None)
        found.begin_to_move()
        after = found.moved_elsewhere()
        found.close()
        return moved, after

    (moved, after), *_ = on_threads(3, run)
    assert (moved, after) == (30, 0)
