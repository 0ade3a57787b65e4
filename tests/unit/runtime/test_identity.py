"""A file is the same as long as nothing of its identity differs; each of its parts is told in words when it does."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.runtime.identity import changes, look_again, look_at, look_into, read_whole, this_process
from distconv.tensors.stored import Header, Inode, SourceFile

FILE = SourceFile("/hf/shard", 100, 1_700_000_000_123_456_789, Header(((0, 10), (90, 100)), "ab"), Inode("here", 1, 2))
SECOND = "2023-11-14 22:13:20"
OTHERS = {
    "size": (
        {"size": 99, "header": None},
        ["was 100 bytes long when the job first read it, now 99"],
    ),
    "a nanosecond": (
        {"mtime_ns": 1_700_000_000_123_456_790},
        [f"was modified at {SECOND}.123456789 UTC when the job first read it, now at {SECOND}.123456790 UTC"],
    ),
    "header": ({"header": Header(((0, 10), (90, 100)), "cd")}, ["its header is another"]),
    "inode": ({"inode": Inode("here", 1, 3)}, ["another file has taken its name"]),
    "device": ({"inode": Inode("here", 3, 2)}, ["another file has taken its name"]),
    "inode, seen by another process": ({"inode": Inode("there", 3, 4)}, []),
    "inode, not seen": ({"inode": None}, []),
    "modification time, not told": ({"mtime_ns": None}, []),
    "header, not read": ({"header": None}, []),
}

IDENTITIES = st.builds(
    SourceFile,
    st.sampled_from(["/a", "/b"]),
    st.integers(0, 3),
    st.none() | st.integers(-1, 1),
    st.none() | st.builds(Header, st.just(((0, 3),)), st.sampled_from("xy")),
    st.none() | st.builds(Inode, st.sampled_from("pq"), st.integers(0, 1), st.integers(0, 1)),
)


@pytest.mark.parametrize("what", OTHERS)
def test_each_part_of_an_identity_counts(what):
    changed, words = OTHERS[what]
    assert changes(FILE, replace(FILE, **changed)) == words


def test_all_that_differs_is_said():
    found = replace(FILE, size=1, mtime_ns=0, header=None, inode=Inode("here", 0, 0))
    assert len(changes(FILE, found)) == 3


def test_of_a_file_that_was_read_as_a_whole_the_content_counts():
    known = replace(FILE, header=Header(((0, 100),), "ab"))
    assert changes(known, replace(known, header=Header(((0, 100),), "cd"))) == ["its content is another"]


def test_a_time_that_no_calendar_has_can_be_told():
    assert changes(FILE, replace(FILE, mtime_ns=10**30))[0].endswith(f"now at {10**21}.000000000 s")


@given(IDENTITIES)
def test_a_file_is_the_same_as_itself_and_after_it_was_shared(file):
    shared = SourceFile.from_json(json.loads(json.dumps(file.to_json())))
    assert (shared, shared.inode) == (file, file.inode)
    assert changes(file, shared) == []


@given(IDENTITIES, IDENTITIES)
def test_a_difference_is_one_in_both_directions(file, other):
    assert len(changes(file, other)) == len(changes(other, file))


@given(st.binary(max_size=60), st.data())
def test_a_file_that_nobody_touches_is_the_same_again(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("identity") / "file"
    path.write_bytes(content)
    bounds = st.integers(0, len(content))
    ranges = data.draw(st.lists(st.tuples(bounds, bounds).map(sorted).map(tuple), max_size=3))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        file = look_into(look_at(path, descriptor), descriptor, ranges)
        assert changes(file, look_again(file, descriptor)) == []
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_the_header_is_the_bytes_in_its_ranges_and_no_others(tmp_path, monkeypatch, piece):
    monkeypatch.setattr("distconv.runtime.identity._PIECE", piece)
    ranges = [(10, 20), (80, 95)]

    def header(content: bytes) -> Header | None:
        (tmp_path / "f").write_bytes(content)
        with (tmp_path / "f").open("rb") as stream:
            return look_into(look_at(tmp_path / "f"), stream.fileno(), ranges).header

    known = header(bytes(100))
    differing = {at for at in range(100) if header(bytes(at) + b"1" + bytes(99 - at)) != known}
    assert differing == {*range(10, 20), *range(80, 95)}


def test_the_identity_of_a_whole_file_is_taken_with_its_content(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    content, file = read_whole(path)
    status = path.stat()
    assert content == b"{}"
    assert (file.path, file.size, file.mtime_ns) == (str(path), 2, status.st_mtime_ns)
    assert file.inode == Inode(this_process(), status.st_dev, status.st_ino)
    assert file.header is not None
    assert file.header.ranges == ((0, 2),)


def test_what_is_written_after_it_was_read_is_another_file(tmp_path, monkeypatch):
    """The identity is older than the content."""
    path: Path = tmp_path / "config.json"
    path.write_bytes(b"{}")

    class Stream(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            content = super().read(size)
            os.utime(path, ns=(0, 0))
            return content

    monkeypatch.setattr("distconv.runtime.identity.open_file", Stream)
    content, file = read_whole(path)
    assert content == b"{}"
    assert changes(file, look_at(path)) != []
