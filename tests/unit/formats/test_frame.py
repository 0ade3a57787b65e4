"""A file has the bytes of its frame and zeros for its data, and every byte of a frame is compared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distconv.formats.frame import Frame, first_difference, heads, joined_frames, text_frame, write_frame

FRAME = Frame(pieces=[(0, b"head"), (10, b"tail")], holes=[4, 14], nbytes=18)


def test_what_is_no_piece_reads_as_zeros(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff" * 100)
    write_frame(tmp_path / "file", FRAME)
    assert (tmp_path / "file").read_bytes() == b"head" + bytes(6) + b"tail" + bytes(4)
    assert first_difference(tmp_path / "file", FRAME) is None


def test_frames_follow_each_other(tmp_path):
    joined = joined_frames([FRAME, text_frame(b"text"), FRAME])
    assert (joined.holes, joined.nbytes) == ([4, 14, 26, 36], 40)
    write_frame(tmp_path / "file", joined)
    one = b"head" + bytes(6) + b"tail" + bytes(4)
    assert (tmp_path / "file").read_bytes() == one + b"text" + one
    assert joined_frames([]) == Frame(pieces=[], holes=[], nbytes=0)


def test_what_is_in_front_of_data_is_its_head_and_the_rest_stays():
    frame = joined_frames([text_frame(b"text"), FRAME, FRAME])
    found, rest = heads(frame, [6, 4, 0, 4])
    assert found == {8: b"texthead", 18: b"tail", 36: b"tail"}
    assert rest == Frame(pieces=[(22, b"head")], holes=frame.holes, nbytes=frame.nbytes)
    # An empty tensor has no data to write its head with; one with data may begin at the same byte.
    assert heads(FRAME, [0, 4]) == ({14: b"tail"}, Frame(pieces=[(0, b"head")], holes=[4, 14], nbytes=18))
    both = Frame(pieces=[(0, b"head")], holes=[4, 4], nbytes=8)
    assert heads(both, [0, 4])[0] == {4: b"head"}


def test_every_other_byte_is_seen_where_it_is_and_no_byte_of_the_data(tmp_path):
    path = tmp_path / "file"
    write_frame(path, FRAME)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        assert first_difference(path, FRAME) == (at if at < 4 or 10 <= at < 14 else None)


def test_a_file_of_another_size_differs_at_its_end_or_that_of_the_frame(tmp_path):
    path = tmp_path / "file"
    write_frame(path, FRAME)
    data = path.read_bytes()
    path.write_bytes(data + b"more")
    assert first_difference(path, FRAME) == 18
    for size, at in ((17, 17), (12, 12), (3, 3), (0, 0)):
        path.write_bytes(data[:size])
        assert first_difference(path, FRAME) == at


def test_what_the_system_says_is_raised(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="found a pipe"):
        first_difference(tmp_path / "pipe", FRAME)
    with pytest.raises(FileNotFoundError):
        first_difference(tmp_path / "none", FRAME)
    with pytest.raises(FileNotFoundError):
        write_frame(tmp_path / "none" / "file", FRAME)
    with pytest.raises(OSError, match=os.strerror(28)):
        write_frame(Path("/dev/full"), FRAME)
