"""Processes check files that others wrote, and what is found anywhere ends all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import JobError
from distconv.formats.records import OutputFile
from distconv.transfer import read_back as read_back_module
from distconv.transfer import staged_check
from distconv.transfer.staged_check import StagedCheck
from distconv.transfer.verify import Compared


class Rank:
    """A process whose phases run at once, as if the others had found nothing."""

    means = None

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.checked_sources = False
        self.asked: list[int] = []

    def run(
        self,
        what: str,
        files: Sequence[OutputFile],
        nbytes: int,
        of_all: int,
        phase: Callable[[], Any],
        *,
        counted_as: str,
    ) -> Any:
        assert (what, counted_as) == ("verifying", "verifying")
        assert of_all == sum(range(1, self.size + 1))
        self.wrote, self.nbytes = files, nbytes
        return [[], phase()], ["measured"]

    def check_sources(self) -> None:
        self.checked_sources = True


def shares(size: int) -> list[list[OutputFile]]:
    return [[OutputFile(path=str(rank), nbytes=rank + 1, order=(rank,), batch=0)] for rank in range(size)]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Rank, list[int], bool]]:
    """A process's check: what it read of whom, and whether it compared what is beside the tensors."""

    def checked(rank: int, size: int, beside: Sequence[str] = (), found: Sequence[str] = ()) -> Any:
        process, read, compared = Rank(rank, size), [], []

        def read_back(_: Any, files: Sequence[OutputFile], *__: Any) -> list[str]:
            read.extend(int(file.path) for file in files)
            return list(found)

        def compare_beside(_: Any, __: Path, content: Any, ___: Any) -> Compared:
            compared.append(content)
            return Compared(differences=list(beside))

        monkeypatch.setattr(staged_check, "on_all", lambda _, phase, tell, __: (None, [tell(phase())]))
        monkeypatch.setattr(read_back_module, "read_back", read_back)
        monkeypatch.setattr(read_back_module, "read_beside", lambda *_: [])
        monkeypatch.setattr(staged_check, "compare_beside", compare_beside)
        process.means = type("Means", (), {"sources": None})
        StagedCheck(plan=None, form=None, reader=None, shares=shares(size)).run(
            Path(), lambda: {"index": b""}, process, process
        )
        assert process.wrote == shares(size)[rank]
        assert process.nbytes == sum(number + 1 for number in read)
        return process, read, bool(compared)

    return checked


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_every_file_is_read_once_and_by_another(size, check):
    found = [check(rank, size) for rank in range(size)]
    assert sorted(number for _, read, _ in found for number in read) == list(range(size))
    assert size == 1 or all(read != [rank] for rank, (_, read, _) in enumerate(found))
    # By whoever reads the files of the first.
    assert [read for _, read, compared in found if compared] == [[0]]


@pytest.mark.parametrize(("nodes", "each"), [(2, 4), (3, 8), (4, 2), (5, 8)])
def test_files_are_read_on_another_node(nodes, each, check):
    for rank in range(nodes * each):
        _, (writer,), _ = check(rank, nodes * each)
        assert writer // each != rank // each


def test_what_is_found_is_an_error(check):
    with pytest.raises(JobError, match="verify=true: the result is not what its source says\nthis\nthat"):
        check(0, 2, found=["this", "that"])


def test_what_is_beside_is_compared_first(check):
    with pytest.raises(JobError, match="says\nindex"):
        check(1, 2, beside=["index"], found=["never looked for"])


def test_a_source_that_changed_is_the_cause(check, monkeypatch):
    monkeypatch.setattr(Rank, "check_sources", lambda _: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        check(0, 1, found=["this"])


def test_what_several_find_in_parts_of_a_file_is_told_once(monkeypatch):
    process = Rank(0, 2)
    process.means = type("Means", (), {"sources": None})
    monkeypatch.setattr(staged_check, "on_all", lambda _, phase, tell, __: (None, [tell(phase())]))
    monkeypatch.setattr(read_back_module, "read_back", lambda *_: ["a: is wrong", "b: is wrong"])
    monkeypatch.setattr(staged_check, "compare_beside", lambda *_: Compared())
    monkeypatch.setattr(process, "run", lambda *given, **_: ([given[4](), given[4]()], []))
    with pytest.raises(JobError) as caught:
        StagedCheck(plan=None, form=None, reader=None, shares=shares(2)).run(Path(), dict, process, process)
    assert [str(caught.value).count(line) for line in ("a: is wrong", "b: is wrong")] == [1, 1]
