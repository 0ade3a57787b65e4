"""What belongs in front of bytes that are written is written with them, in one request, and counts for the checksum."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

import pytest

from distconv.transfer import sinks
from distconv.transfer.checksum import Checksums
from distconv.transfer.files import OpenFiles, read_into, write_from
from distconv.transfer.sinks import Counters, WriteSink

DATA = bytes(range(200)) * 5000


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("in_kernel", [False, True])
@pytest.mark.parametrize("nbytes", [len(DATA), 10])
def test_a_head_is_written_with_the_first_bytes(tmp_path: Path, summed, in_kernel, nbytes):
    path, source = str(tmp_path / "file"), tmp_path / "source"
    source.write_bytes(b"0123" + DATA)
    Path(path).write_bytes(bytes(8 + 2 * nbytes))
    counters = Counters(lambda _: None)
    heads = {(path, 4): b"head", (path, 4 + nbytes + 4): b"more"}
    no_copy = patch.object(os, "copy_file_range", side_effect=OSError(95, "not here"))
    checksums = Checksums()
    with OpenFiles(os.O_WRONLY) as files, source.open("rb") as stream:
        sink = WriteSink(files, counters, checksums if summed else None, heads)
        if in_kernel:
            sink.copy(stream.fileno(), 4, path, 4, nbytes, memoryview(bytearray(1000)))
        else:
            with no_copy:
                sink.copy(stream.fileno(), 4, path, 4, nbytes, memoryview(bytearray(1000)))
        sink.put(path, 8 + nbytes, memoryview(DATA[: nbytes // 2]))
        sink.put(path, 8 + nbytes + nbytes // 2, memoryview(DATA[nbytes // 2 : nbytes]))
        expected = b"head" + DATA[:nbytes] + b"more" + DATA[:nbytes]
        assert Path(path).read_bytes() == expected
        if summed:
            assert checksums.taken(path, len(expected)) == crc32(expected)
    assert counters.written == 2 * nbytes


def test_what_is_read_slowly_is_read_in_larger_pieces(tmp_path: Path):
    """A network file system answers few large requests sooner than many small ones."""
    data, requests, clock = DATA * 10, [], [0.0]
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "file").touch()
    checksums = Checksums()

    def read(descriptor: int, offset: int, buffer: memoryview) -> None:
        requests.append(len(buffer))
        clock[0] += 0.005
        read_into(descriptor, offset, buffer)

    with (
        OpenFiles(os.O_WRONLY) as files,
        (tmp_path / "source").open("rb") as stream,
        patch.object(sinks, "read_into", read),
        patch.object(sinks, "idle_seconds", lambda: clock[0]),
    ):
        sink = WriteSink(files, Counters(lambda _: None), checksums)
        sink.copy(stream.fileno(), 0, str(tmp_path / "file"), 0, len(data), memoryview(bytearray(3 * 2**20)))

    assert requests == [2**19, 2**19, 2**20, 2**21, 3 * 2**20, len(data) - 7 * 2**20]
    assert (tmp_path / "file").read_bytes() == data
    assert checksums.taken(str(tmp_path / "file"), len(data)) == crc32(data)


def test_a_head_takes_no_request_of_its_own(tmp_path: Path):
    path = str(tmp_path / "file")
    Path(path).touch()
    with OpenFiles(os.O_WRONLY) as files, patch.object(os, "pwritev", wraps=os.pwritev) as calls:
        WriteSink(files, Counters(lambda _: None), None, {(path, 4): b"head"}).put(path, 4, memoryview(b"data"))
    assert calls.call_count == 1
    assert Path(path).read_bytes() == b"headdata"


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_everything_is_written_however_little_the_system_takes_at_a_time(tmp_path: Path, most):
    def less(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return os.pwrite(descriptor, b"".join(buffers)[:most], offset)

    with (tmp_path / "file").open("wb") as stream, patch.object(os, "pwritev", less):
        write_from(stream.fileno(), 3, *map(memoryview, (b"", b"ab", b"cdefg", b"", b"h")))
        write_from(stream.fileno(), 0)
    assert (tmp_path / "file").read_bytes() == bytes(3) + b"abcdefgh"
