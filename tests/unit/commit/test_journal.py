"""What a job has finished is known after any end, and what it made is told from what another would make."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from distconv.commit.journal import Finished, Journal, describe_work, description_of, finished_in
from distconv.formats.records import Written
from tests.unit.commit.targets import JOB

FILES = {
    "a/b.pt": Finished(written=Written(3, 17), durable=False, overflowed={"float16": {"a/b.pt: w": 2}}),
    "c": Finished(written=Written(0, None), durable=True),
}


@pytest.mark.parametrize("durable", [True, False])
def test_the_journals_of_all_processes_are_read_together(tmp_path, durable):
    for rank, (path, each) in enumerate(FILES.items()):
        Journal(tmp_path, rank, durable=durable).add({path: each})
    Journal(tmp_path, 1, durable=durable).add({"d": FILES["c"]})
    assert finished_in(tmp_path) == {**FILES, "d": FILES["c"]}


@given(some.integers(0, 400))
def test_a_journal_that_was_cut_off_holds_what_was_whole(tmp_path_factory, length):
    work = tmp_path_factory.mktemp("work")
    for path, each in FILES.items():
        Journal(work, 0, durable=False).add({path: each})
    journal = work / "finished-0"
    content = journal.read_bytes()
    journal.write_bytes(content[:length])
    found = finished_in(work)
    assert found.items() <= FILES.items()
    whole = content[: content.index(b"}\n") + 1]
    assert ("a/b.pt" in found) == (length >= len(content.split(b"\n\n")[0]))
    assert whole
    # The process that continues it begins a new line.
    Journal(work, 0, durable=False).add({"new": FILES["c"]})
    assert finished_in(work) == {**found, "new": FILES["c"]}


@given(some.binary(max_size=200))
def test_a_damaged_journal_holds_nothing_that_it_does_not_say(tmp_path_factory, content):
    work = tmp_path_factory.mktemp("work")
    (work / "finished-0").write_bytes(content)
    (work / "job.json").write_bytes(content)
    assert finished_in(work) == {}
    assert description_of(work) is None


@pytest.mark.parametrize("line", ["1", "[]", '{"a": 1}', '{"a": [[1], true, {}]}', '{"a": [["1", 2], true, {}]}', "{}"])
def test_a_line_of_something_else_is_none(tmp_path, line):
    (tmp_path / "finished-0").write_text(line + "\n")
    assert finished_in(tmp_path) == {}


def test_what_can_neither_be_compared_nor_was_durable_is_not_finished(tmp_path):
    Journal(tmp_path, 0, durable=False).add({"a": Finished(written=Written(3, None), durable=False), **FILES})
    assert finished_in(tmp_path) == FILES


def test_nothing_is_finished_where_there_is_no_journal(tmp_path):
    assert finished_in(tmp_path) == finished_in(tmp_path / "none") == {}
    assert description_of(tmp_path) is None


@pytest.mark.parametrize("durable", [True, False])
def test_a_description_is_read_as_it_was_written(tmp_path, durable):
    described = replace(JOB, options={"layout.tp": 2, "select": ["text"]}, sources={"/a": [1, None, "ab"]})
    describe_work(tmp_path, described, durable=durable)
    assert description_of(tmp_path) == described
    assert described.differences(described) == []


def test_what_differs_is_named():
    before = replace(
        JOB,
        directories={"source": "/a", "reference": "/r"},
        options={"dtype": "bfloat16", "layout.tp": 2},
        sources={f"/a/{number}": [1, number, None] for number in range(9)},
    )
    now = replace(
        before,
        version="2",
        directories={"source": "/b"},
        options={"layout.tp": 4, "dtype": "bfloat16", "vocab_size": 5},
        sources={**before.sources, "/a/3": [1, 7, None]},
        definitions="other",
    )
    assert before.differences(now) == [
        "distconv was 1, is 2",
        "source: was /a, is /b",
        "reference: was /r, is not given",
        "layout.tp: was 2, is 4",
        "vocab_size: was not given, is 5",
        "/a/3 is not the file that it was",
        "the model definition, or a dialect, is another one",
    ]
    many = before.differences(replace(before, sources={path: [2, 0, None] for path in before.sources}))
    assert many[-1] == "4 more files of the source are not what they were"
    assert len(many) == 6
    assert before.differences(replace(before, files="x")) == ["the files of the result are others"]
