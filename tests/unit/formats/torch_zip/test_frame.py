"""A frame is what torch's own writer makes of the same members, byte for byte; what is between its pieces is data."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from distconv.formats.frame import Frame, joined_frames, write_frame
from distconv.formats.torch_zip.frame import zip_frame

Members = list[tuple[str, bytes | int]]

CONTENTS = st.binary(min_size=1, max_size=200) | st.integers(0, 300)
# Where sizes and offsets stop fitting into 32 bits.
BEFORE = 64 + 16  # the header of the first member, and its descriptor
LARGE = st.integers(2**32 - 300, 2**32 + 300) | st.integers(0, 2**35)


def named(contents: list[bytes | int]) -> Members:
    return [(f"archive/{'a' * (number % 70)}{number}", content) for number, content in enumerate(contents)]


def written_by_torch(path: Path, members: Members) -> Members:
    """Have torch write an archive; its members, which are those given and what torch adds at the end."""
    known = dict(members)
    writer = torch._C.PyTorchFileWriter(str(path.with_name("archive")))
    for name, content in members:
        record = name.removeprefix("archive/")
        if isinstance(content, int):
            writer.write_record_metadata(record, content)
        else:
            writer.write_record(record, content, len(content))
    writer.write_end_of_file()
    path.with_name("archive").rename(path)
    with zipfile.ZipFile(path) as archive:
        added = [name for name in archive.namelist() if name not in known]
        assert "archive/version" in added
        return [*members, *((name, archive.read(name)) for name in added)]


def assert_framed(path: Path, frame: Frame) -> None:
    """The file is the frame, with zeros between its pieces, which are not read: they may be many."""
    assert path.stat().st_size == frame.nbytes
    with path.open("rb") as stream:
        for offset, piece in frame.pieces:
            stream.seek(offset)
            assert stream.read(len(piece)) == piece


@given(st.lists(CONTENTS, min_size=1, max_size=12))
def test_members_are_framed_as_torch_does_it(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("zip") / "file"
    assert_framed(path, zip_frame(written_by_torch(path, named(contents))))


@given(st.lists(CONTENTS | LARGE, min_size=1, max_size=8))
@example([2**32 - 2, b"text"])
@example([2**32 - 1, b"text"])
@example([2**32 - 1 - BEFORE, b"text"])  # whose header is at 2 ** 32 - 1
@example([2**32 - 2 - BEFORE, b"text"])
def test_sizes_and_offsets_beyond_32_bits_are_framed_as_torch_does_it(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("zip") / "file"
    assert_framed(path, zip_frame(written_by_torch(path, named(contents))))
    path.unlink()


def test_more_members_than_16_bits_count_are_framed_as_torch_does_it(tmp_path):
    path = tmp_path / "file"
    assert_framed(path, zip_frame(written_by_torch(path, named([1] * (2**16 + 1)))))


@given(st.lists(CONTENTS | LARGE, min_size=1, max_size=8))
def test_pieces_and_holes_are_the_whole_archive(contents):
    frame = zip_frame(named(contents))
    sizes = [content for content in contents if isinstance(content, int)]
    assert len(frame.holes) == len(sizes)
    assert all(hole % 64 == 0 for hole in frame.holes)
    spans = [(offset, offset + len(piece)) for offset, piece in frame.pieces]
    spans += [(hole, hole + size) for hole, size in zip(frame.holes, sizes, strict=True) if size]
    spans.sort()
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == frame.nbytes


@given(st.lists(CONTENTS | LARGE, min_size=1, max_size=8))
def test_python_reads_the_zip(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("zip") / "file"
    members = named(contents)
    write_frame(path, zip_frame(members))
    with zipfile.ZipFile(path) as archive:
        assert {info.filename: info.file_size for info in archive.infolist()} == {
            name: content if isinstance(content, int) else len(content) for name, content in members
        }
        # It compares with the checksum.
        for name, content in members:
            assert isinstance(content, int) or archive.read(name) == content
    path.unlink()


@pytest.mark.parametrize("archives", [1, 3])
def test_archives_of_a_file_are_sparse_and_follow_each_other(tmp_path, archives):
    path = tmp_path / "file"
    frame = zip_frame(named([b"text", 1 << 24, 0, 100, b"more"]))
    write_frame(path, joined_frames([frame] * archives))
    assert path.read_bytes() == (b"".join(_filled(frame))) * archives
    assert path.stat().st_blocks * 512 < (1 << 20) * archives


def _filled(frame: Frame) -> list[bytes]:
    ends = [offset for offset, _ in frame.pieces[1:]] + [frame.nbytes]
    return [piece.ljust(end - offset, b"\0") for (offset, piece), end in zip(frame.pieces, ends, strict=True)]
