"""Files of a source are read only while they are what was looked at; every change is named, and nothing else is."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distconv.errors import SourceChangedError
from distconv.runtime.identity import look_at, look_into
from distconv.runtime.regular_files import open_descriptor
from distconv.tensors.stored import SourceFile
from distconv.transfer import sources as module
from distconv.transfer.sources import ByPath, SourceFiles

HEADER = 8


def written(path: Path, first: int = 0) -> SourceFile:
    """A file of 64 bytes, and its identity with the first 8 as its header."""
    path.write_bytes(bytes(range(first, first + 64)))
    return identity(path)


def identity(path: Path) -> SourceFile:
    with path.open("rb") as stream:
        return look_into(look_at(path), stream.fileno(), [(0, HEADER)])


def without_place(file: SourceFile) -> SourceFile:
    """As another process sees it that did not look at it."""
    return replace(file, inode=None)


def read(sources: SourceFiles, file: SourceFile) -> bytes:
    with sources.opened(file) as descriptor:
        return os.pread(descriptor, 64, 0)


def with_time_of(path: Path, file: SourceFile) -> None:
    assert file.mtime_ns is not None
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))


def overwritten(path: Path, file: SourceFile) -> None:  # noqa: ARG001
    with path.open("r+b") as stream:
        stream.seek(20)
        stream.write(b"x")
    os.utime(path)


def overwritten_in_the_header(path: Path, file: SourceFile) -> None:
    """By a program that keeps the time, such as `rsync --inplace --times` from a tree that was made like this one."""
    with path.open("r+b") as stream:
        stream.write(b"x")
    with_time_of(path, file)


def replaced(path: Path, file: SourceFile) -> None:  # noqa: ARG001
    written(path.with_name("new"), first=1)
    os.utime(path.with_name("new"))
    path.with_name("new").rename(path)


def replaced_by_a_copy(path: Path, file: SourceFile) -> None:  # noqa: ARG001
    """Of the same size, header and time: only the inode tells."""
    shutil.copy2(path, path.with_name("new"))
    path.with_name("new").rename(path)


def linked_to_another(path: Path, file: SourceFile) -> None:
    """As the cache of a hub points to another snapshot."""
    blob = path.with_name("blob")
    written(blob)
    with_time_of(blob, file)
    path.unlink()
    path.symlink_to(blob)


def grown(path: Path, file: SourceFile) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")
    with_time_of(path, file)


def shrunk(path: Path, file: SourceFile) -> None:
    os.truncate(path, 63)
    with_time_of(path, file)


def removed(path: Path, file: SourceFile) -> None:  # noqa: ARG001
    path.unlink()


def made_a_directory(path: Path, file: SourceFile) -> None:  # noqa: ARG001
    path.unlink()
    path.mkdir()


Change = Callable[[Path, SourceFile], None]
# What changes a file, what is said of it, and whether only the process notices that looked at it before.
CHANGES: dict[Change, tuple[str, bool]] = {
    overwritten: ("was modified at", False),
    overwritten_in_the_header: ("its header is another", False),
    replaced: ("was modified at", False),
    replaced_by_a_copy: ("another file has taken its name", True),
    linked_to_another: ("another file has taken its name", True),
    grown: ("was 64 bytes long when the job first read it, now 68", False),
    shrunk: ("was 64 bytes long when the job first read it, now 63", False),
    removed: ("cannot be read now: No such file or directory", False),
    made_a_directory: ("cannot be read now: Is a directory", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_looking_and_reading_is_named(change, tmp_path):
    file = written(tmp_path / "shard")
    change(tmp_path / "shard", file)
    says, _ = CHANGES[change]
    with SourceFiles() as sources:
        # What is not there is an error of the system, as for every file.
        expected = OSError if "cannot be read" in says else SourceChangedError
        with pytest.raises(expected) as caught:
            read(sources, file)
        assert expected is OSError or says in str(caught.value)
        with pytest.raises(expected):
            read(sources, file)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("of", [lambda file: file, without_place], ids=["looked here", "looked elsewhere"])
def test_a_change_after_reading_is_named(change, of, tmp_path):
    file = written(tmp_path / "shard")
    with SourceFiles() as sources:
        assert read(sources, of(file)) == bytes(range(64))
        sources.check(1)
        change(tmp_path / "shard", file)
        with pytest.raises(SourceChangedError, match=f"^{tmp_path}/shard: .*{CHANGES[change][0]}"):
            sources.check(1)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_readings_is_named_where_the_file_was_closed_meanwhile(change, tmp_path):
    file, other = written(tmp_path / "shard"), written(tmp_path / "other")
    with SourceFiles(limit=1) as sources:
        read(sources, without_place(file))
        read(sources, other)
        change(tmp_path / "shard", file)
        with pytest.raises((SourceChangedError, OSError)):
            read(sources, without_place(file))


@pytest.mark.parametrize("change", CHANGES)
def test_what_this_process_looked_at_is_compared_although_nobody_read_it(change, tmp_path):
    file = written(tmp_path / "config.json")
    with SourceFiles(lambda: [file]) as sources:
        sources.check(1)
        change(tmp_path / "config.json", file)
        with pytest.raises(SourceChangedError, match=CHANGES[change][0]):
            sources.check(1)
    # The one that looked at it says so.
    with SourceFiles(lambda: [without_place(file)]) as sources:
        sources.check(1)


@pytest.mark.parametrize("change", [each for each, (_, only_here) in CHANGES.items() if only_here])
def test_another_process_may_see_other_inodes(change, tmp_path):
    file = written(tmp_path / "shard")
    change(tmp_path / "shard", file)
    with SourceFiles(lambda: [file]) as sources:
        elsewhere = replace(file, inode=replace(file.inode, process="another"))
        assert read(sources, elsewhere) == bytes(range(64))


@pytest.mark.parametrize("threads", [1, 3])
def test_all_that_changed_is_named_at_once(threads, tmp_path):
    files = [written(tmp_path / str(number)) for number in range(5)]
    with SourceFiles(lambda: files) as sources:
        read(sources, files[0])
        for number in (1, 3, 4):
            replaced(tmp_path / str(number), files[number])
        with pytest.raises(SourceChangedError) as caught:
            read(sources, files[3])
        assert sorted(line.partition(":")[0] for line in caught.value.problems) == [
            str(tmp_path / str(number)) for number in (1, 3, 4)
        ]
        with pytest.raises(SourceChangedError) as caught:
            sources.check(threads)
        assert len(caught.value.problems) == 3


def test_a_file_that_changed_back_when_it_is_looked_for_is_refused_all_the_same(tmp_path):
    file = written(tmp_path / "shard")
    os.utime(tmp_path / "shard", ns=(1, 1))

    def looked_at() -> list[SourceFile]:
        with_time_of(tmp_path / "shard", file)
        return [file]

    with SourceFiles(looked_at) as sources, pytest.raises(SourceChangedError, match="was modified at"):
        read(sources, file)


ACTIONS = st.sampled_from(["read", "touch a link", "chmod", "add a file", "read it elsewhere", "check"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.tuples(ACTIONS, st.integers(0, 3))), st.integers(1, 5), st.booleans())
def test_what_nobody_changed_is_never_refused(tmp_path_factory, actions, limit, here):
    directory = tmp_path_factory.mktemp("sources")
    files = [written(directory / str(number), first=number) for number in range(4)]
    given = files if here else list(map(without_place, files))
    with SourceFiles(lambda: given, limit=limit) as sources:
        for action, number in actions:
            path = directory / str(number)
            if action == "read":
                assert read(sources, given[number]) == bytes(range(number, number + 64))
            elif action == "check":
                sources.check(2)
            elif action == "touch a link":
                link = directory / "link"
                link.unlink(missing_ok=True)
                link.hardlink_to(path)
            elif action == "chmod":
                path.chmod(0o600)
            elif action == "add a file":
                (directory / f"more{number}").write_bytes(b"")
            else:
                path.read_bytes()
        sources.check(1)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("limit", [2, 3])
def test_files_are_held_open_up_to_the_limit_and_the_last_used_stay(limit, tmp_path):
    files = [written(tmp_path / str(number), first=number) for number in range(6)]
    before = open_descriptors()
    opened: list[str] = []
    with (
        patch.object(module, "open_descriptor", lambda path: (opened.append(path), open_descriptor(path))[1]),
        SourceFiles(limit=limit) as sources,
    ):
        for number, file in enumerate(files):
            assert read(sources, file) == bytes(range(number, number + 64))
            assert read(sources, files[0])[0] == 0
            assert open_descriptors() - before <= limit
        # Each of them once: what is used again and again stays.
        assert opened == [file.path for file in files]
    assert open_descriptors() == before


def test_a_file_that_is_being_read_is_not_closed(tmp_path):
    files = [written(tmp_path / str(number), first=number) for number in range(3)]
    with SourceFiles(limit=1) as sources, sources.opened(files[0]) as first:
        for number in (1, 2):
            assert read(sources, files[number])[0] == number
        assert os.pread(first, 1, 0) == b"\0"


def test_a_file_that_a_thread_hangs_in_stays_open_at_the_end(tmp_path):
    """Else its number would be that of another file, into which the thread reads when it goes on."""
    hanging, other = written(tmp_path / "hanging"), written(tmp_path / "other")
    before = open_descriptors()
    sources = SourceFiles()
    with sources:
        read(sources, other)
        reading = sources.opened(hanging)
        descriptor = reading.__enter__()
    assert open_descriptors() == before + 1
    assert os.pread(descriptor, 64, 0) == bytes(range(64))
    reading.__exit__(None, None, None)
    os.close(descriptor)


def test_an_error_of_closing_what_was_read_is_none(tmp_path):
    first, second = written(tmp_path / "first"), written(tmp_path / "second")

    def failing(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    close = os.close
    with patch.object(os, "close", failing), SourceFiles(limit=1) as sources:
        for file in (first, second):
            assert read(sources, file) == bytes(range(64))
        sources.check(1)


def test_where_the_system_gives_no_more_descriptors_one_is_closed(tmp_path):
    files = [written(tmp_path / str(number), first=number) for number in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 8, hard))
    try:
        with SourceFiles(limit=100) as sources:
            for number, file in enumerate(files):
                assert read(sources, file)[0] == number
            sources.check(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("limit", "expected"), [((7, 100), 3), ((1, 100), 1), ((resource.RLIM_INFINITY,) * 2, 2**20)])
def test_half_of_the_descriptors_are_for_sources(monkeypatch, limit, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit)
    assert module._half_of_the_descriptors() == expected


def test_threads_share_few_descriptors(tmp_path):
    files = [written(tmp_path / str(number), first=number) for number in range(12)]
    before = open_descriptors()
    most: list[int] = []

    def all_of_them(first: int) -> Sequence[int]:
        found = []
        for number in [*range(first, 12), *range(first)]:
            with sources.opened(files[number]) as descriptor:
                most.append(open_descriptors() - before)
                found.append(os.pread(descriptor, 1, 0)[0] - number)
        return found

    with SourceFiles(limit=2) as sources, ThreadPoolExecutor(4) as pool:
        for found in pool.map(all_of_them, range(12)):
            assert found == [0] * 12
    # Those that are read, one that is to be, those that are counted here by listing a directory.
    assert max(most) <= 2 + 4 + 4


def test_who_waits_for_a_file_keeps_nobody_from_those_that_are_open(tmp_path):
    first, second = written(tmp_path / "first"), written(tmp_path / "second")
    asked, go_on = threading.Event(), threading.Event()

    def slow(path: str) -> int:
        if path == second.path:
            asked.set()
            assert go_on.wait(5)
        return open_descriptor(path)

    with SourceFiles() as sources, ThreadPoolExecutor(1) as pool, patch.object(module, "open_descriptor", slow):
        read(sources, first)
        waiting = pool.submit(read, sources, second)
        assert asked.wait(5)
        assert read(sources, first) == bytes(range(64))
        go_on.set()
        waiting.result(5)


def test_a_format_that_tells_no_more_than_sizes_is_compared_with_what_was_opened_first(tmp_path):
    written(tmp_path / "shard")
    file = SourceFile(str(tmp_path / "shard"), 64)
    with SourceFiles(limit=1) as sources:
        read(sources, file)
        os.utime(tmp_path / "shard", ns=(1, 1))
        with pytest.raises(SourceChangedError, match="was modified at"):
            sources.check(1)
        read(sources, written(tmp_path / "other"))
        with pytest.raises(SourceChangedError, match="was modified at"):
            read(sources, file)


def test_what_was_copied_after_the_check_is_compared_by_itself(tmp_path):
    side, shard = written(tmp_path / "side"), written(tmp_path / "shard")
    with SourceFiles(lambda: [shard]) as sources:
        assert b"".join(sources.pieces(side)) == bytes(range(64))
        overwritten(tmp_path / "shard", shard)
        sources.check_these([side])
        overwritten(tmp_path / "side", side)
        with pytest.raises(SourceChangedError, match=f"^{tmp_path}/side: "):
            sources.check_these([side])


@pytest.mark.parametrize("piece", [1, 10, 64, 100])
def test_content_comes_in_pieces(piece, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", piece)
    file = written(tmp_path / "side")
    with SourceFiles() as sources:
        assert b"".join(sources.pieces(file)) == bytes(range(64))


def test_copies_in_a_source_are_read_by_their_paths(tmp_path):
    file = written(tmp_path / "shard")
    replaced(tmp_path / "shard", file)
    with (
        SourceFiles() as sources,
        pytest.raises(SourceChangedError),
        ByPath(sources, {file.path: file}).opened(file.path),
    ):
        pass


def test_a_line_break_in_a_name_is_no_line_break_in_a_message(tmp_path):
    file = written(tmp_path / "a\nb")
    overwritten(tmp_path / "a\nb", file)
    with SourceFiles() as sources, pytest.raises(SourceChangedError) as caught:
        read(sources, file)
    assert "\n" not in str(caught.value)
