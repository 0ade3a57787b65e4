"""A crew does portions in their order, goes on while nobody waits, and ends with what went wrong first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from distconv.errors import JobError, LostError, StoppedError
from distconv.tensors.stored import SourceFile, StoredTensor
from distconv.tensors.virtual import whole
from distconv.transfer import crew as transfer
from distconv.transfer.crew import Crew
from distconv.transfer.engine import Shard, Work
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from tests.unit.buffers import small_buffers

BYTES = 64


class Recorded:
    """A sink that keeps the targets of what it receives; until `goes_on` is set, it does not return."""

    def __init__(self, *, waits: bool = False) -> None:
        self.received: list[str] = []
        self.arrived, self.goes_on = threading.Event(), threading.Event()
        if not waits:
            self.goes_on.set()

    def copy(self, _source: int, _from: int, path: str, offset: int, _nbytes: int, scratch: memoryview) -> None:
        self.put(path, offset, scratch)

    def put(self, path: str, _offset: int, _data: memoryview) -> None:
        self.received.append(path)
        self.arrived.set()
        assert self.goes_on.wait(20)


def work(directory: Path, *names: str) -> list[Work]:
    """A tensor for each name, in a file of that name, of which the target has the same name."""
    found = []
    for name in names:
        path = directory / name
        path.write_bytes(bytes(BYTES))
        source = StoredTensor("tensor", "uint8", (BYTES,), SourceFile(str(path), BYTES), 0)
        found.append(Work((source,), (Shard(whole("uint8", (BYTES,)), name, 0),)))
    return found


@contextmanager
def at_work(*, threads: int = 2, must_stop: Callable[[], bool] = lambda: False) -> Iterator[Crew]:
    with (
        patch.object(transfer, "_ALARM_SECONDS", 0.01),
        SourceFiles() as sources,
        Crew(sources, Counters(lambda _: None), buffers=small_buffers(threads), must_stop=must_stop) as crew,
    ):
        yield crew


def left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("transfer-")]


@pytest.mark.parametrize("threads", [1, 3])
def test_all_portions_are_done_in_the_order_of_giving(tmp_path, threads):
    sink = Recorded()
    with at_work(threads=threads) as crew:
        portions = [crew.begin(work(tmp_path, *names), sink) for names in ("abc", "", "de", "f")]
        for portion, done in zip(portions, ("abc", "abc", "abcde", "abcdef"), strict=True):
            crew.wait(portion)
            assert portion.is_done
            assert set(done) <= set(sink.received)
    assert sorted(sink.received) == list("abcdef")
    if threads == 1:
        assert sink.received == list("abcdef")
    assert left() == []


def test_each_portion_has_its_own_sink(tmp_path):
    one, other = Recorded(), Recorded()
    with at_work(threads=1) as crew:
        crew.begin(work(tmp_path, "a"), one)
        crew.wait(crew.begin(work(tmp_path, "b"), other))
    assert (one.received, other.received) == (["a"], ["b"])


def test_threads_go_on_to_the_next_portion_before_the_last_one_is_done(tmp_path):
    slow, next_one = Recorded(waits=True), Recorded()
    with at_work() as crew:
        first, second = crew.begin(work(tmp_path, "a"), slow), crew.begin(work(tmp_path, "b", "c"), next_one)
        crew.wait(second)
        assert slow.arrived.wait(20)
        assert not first.is_done
        slow.goes_on.set()
        crew.wait(first)
    assert (slow.received, sorted(next_one.received)) == (["a"], ["b", "c"])


def test_what_was_given_is_done_though_nobody_waits_for_it(tmp_path):
    sink = Recorded()
    with at_work() as crew:
        crew.begin(work(tmp_path, *"abcdefgh"), sink)
    assert sorted(sink.received) == list("abcdefgh")


def test_fewer_threads_than_wanted_do_all_the_work(tmp_path):
    """A system may allow no more."""
    start, sink = threading.Thread.start, Recorded()

    def first_alone(thread: threading.Thread) -> None:
        if left():
            raise RuntimeError("can't start new thread")
        start(thread)

    with patch.object(threading.Thread, "start", first_alone), at_work(threads=3) as crew:
        assert left() == ["transfer-0"]
        crew.wait(crew.begin(work(tmp_path, *"abc"), sink))
    assert sorted(sink.received) == list("abc")


def test_a_crew_without_work_ends():
    with at_work(threads=3):
        assert len(left()) == 3
    assert left() == []


@pytest.mark.parametrize("waits_for", [0, 1])
def test_a_failure_of_one_thread_stops_the_others_and_is_the_one_reported(tmp_path, waits_for):
    works = work(tmp_path, *map(str, range(50)))
    (tmp_path / "7").unlink()
    with at_work(threads=4) as crew:
        portions = [crew.begin(works[:20], Recorded()), crew.begin(works[20:], Recorded())]
        with pytest.raises(JobError, match=f"reading tensor from {tmp_path}/7: "):
            crew.wait(portions[waits_for])
    assert left() == []


def test_work_stops_when_it_is_told_to(tmp_path):
    sink = Recorded(waits=True)

    def must_stop() -> bool:
        if sink.arrived.is_set():
            sink.goes_on.set()
            return True
        return False

    with pytest.raises(StoppedError), at_work(threads=1, must_stop=must_stop) as crew:
        crew.wait(crew.begin(work(tmp_path, *"abc"), sink))
    assert left() == []


def test_an_error_of_who_gives_the_work_stops_the_threads(tmp_path):
    sink = Recorded(waits=True)

    class OwnError(Exception):
        pass

    def fail_meanwhile() -> None:
        with at_work(threads=1) as crew:
            crew.begin(work(tmp_path, *"abc"), sink)
            assert sink.arrived.wait(20)
            threading.Timer(0.05, sink.goes_on.set).start()
            raise OwnError

    with pytest.raises(OwnError):
        fail_meanwhile()
    assert sink.received == ["a"]
    assert left() == []


def test_threads_that_hang_are_left_alone_where_another_process_is_lost(tmp_path):
    sink = Recorded(waits=True)

    def must_stop() -> bool:
        if not sink.arrived.is_set():
            return False
        raise LostError("rank 1")

    with (
        patch.object(transfer, "_FAREWELL_SECONDS", 0.05),
        pytest.raises(LostError, match="rank 1"),
        at_work(threads=1, must_stop=must_stop) as crew,
    ):
        crew.wait(crew.begin(work(tmp_path, "a"), sink))
    (hanging,) = (thread for thread in threading.enumerate() if thread.name == "transfer-0")
    assert hanging.daemon
    sink.goes_on.set()
    hanging.join(20)
    assert left() == []
