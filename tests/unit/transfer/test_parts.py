"""Files that several processes write are as those of one; processes are simulated one after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as some

from distconv.commit.journal import Finished
from distconv.errors import JobError
from distconv.formats.frame import Frame
from distconv.formats.megatron.plan import MegatronPlan
from distconv.formats.records import Entry, FilePart, OutputFile
from distconv.input_output import InputOutput
from distconv.planning.assign import assign_parts
from distconv.runtime.mounts import parsed
from distconv.transfer import parts as sharing
from distconv.transfer import write as writing
from distconv.transfer.checksum import Piece
from distconv.transfer.means import Means
from distconv.transfer.parts import WrittenPart, create_shared, finished_files, may_be_shared, write_parts
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from tests.unit.buffers import small_buffers
from tests.unit.toy_files import Unmarked, expected, planned

IO = InputOutput(fsync=False)


class Marked(Unmarked):
    """Files with a beginning of their own, a mark in front of each tensor, and an end."""

    def frame(self, file: OutputFile, entries: Sequence[Entry]) -> Frame:
        pieces, holes, position = [(0, b"begin")], [], 5
        for number, entry in enumerate(entries):
            mark = f"<{number}>".encode()
            pieces.append((position, mark))
            holes.append(position + len(mark))
            position = holes[-1] + entry.nbytes
        pieces.append((position, f"end of {file.path}".encode()))
        return Frame(pieces=pieces, holes=holes, nbytes=position + len(pieces[-1][1]))


def content(plan: MegatronPlan, file: OutputFile) -> bytes:
    """All bytes of a file as `Marked` orders them, the tensors converted by hand."""
    entries = tuple(plan.entries(file))
    frame = Marked(plan.dictionaries).frame(file, entries)
    found, tensors, start = bytearray(frame.nbytes), expected(plan, file.path), 0
    for offset, data in frame.pieces:
        found[offset : offset + len(data)] = data
    for hole, entry in zip(frame.holes, entries, strict=True):
        found[hole : hole + entry.nbytes] = tensors[start : start + entry.nbytes]
        start += entry.nbytes
    return bytes(found)


def parts_of(plan: MegatronPlan, processes: int) -> list[list[FilePart]]:
    shares = assign_parts(plan, plan.files, processes, shared=True)
    return [[each for each in share if isinstance(each, FilePart)] for share in shares]


def written(
    plan: MegatronPlan, directory: Path, shares: Sequence[Sequence[FilePart]], io: InputOutput = IO
) -> list[dict[str, WrittenPart]]:
    """What processes tell of their parts, as others get it."""
    form = Marked(plan.dictionaries)
    for share in shares:
        create_shared(plan, share, directory, form)
    found = []
    for share in shares:
        counters = Counters(lambda _: None)
        with SourceFiles() as sources:
            means = Means(io=io, counters=counters, sources=sources, buffers=small_buffers(2), must_stop=lambda: False)
            told = json.loads(json.dumps(write_parts(plan, share, directory, form, means)))
        assert counters.written == sum(part.nbytes for part in share)
        found.append({path: WrittenPart(*each) for path, each in told.items()})
    return found


@pytest.mark.parametrize("processes", [2, 3, 5, 8, 100])
def test_files_are_those_of_one_process(tmp_path, processes):
    plan = planned(tmp_path)
    shares = parts_of(plan, processes)
    assert sum(map(bool, shares)) == min(processes, len(list(plan.entries(plan.files[0]))))
    (tmp_path / "out").mkdir()
    told = written(plan, tmp_path / "out", shares)
    finished = finished_files(tmp_path / "out", told, durable=True)
    (file,) = plan.files
    whole = content(plan, file)
    assert (tmp_path / "out" / file.path).read_bytes() == whole
    assert finished == {file.path: Finished(written=(len(whole), crc32(whole)), durable=True)}
    # Pieces in a row are one, so little is told.
    assert max(len(each[file.path].pieces or ()) for each in told if each) <= 3


def test_several_files_are_shared_at_once(tmp_path):
    plan = planned(tmp_path, tp=2)
    (tmp_path / "out").mkdir()
    told = written(plan, tmp_path / "out", parts_of(plan, 5))
    assert any(len(each) == 2 for each in told)
    finished = finished_files(tmp_path / "out", told, durable=False)
    for file in plan.files:
        whole = content(plan, file)
        assert (tmp_path / "out" / file.path).read_bytes() == whole
        assert finished[file.path].written == (len(whole), crc32(whole))
        assert not finished[file.path].durable


def test_files_without_checksums_have_sizes(tmp_path):
    plan = planned(tmp_path)
    (tmp_path / "out").mkdir()
    told = written(plan, tmp_path / "out", parts_of(plan, 3), InputOutput(fsync=False, checksum=False))
    (file,) = plan.files
    whole = content(plan, file)
    assert (tmp_path / "out" / file.path).read_bytes() == whole
    assert finished_files(tmp_path / "out", told, durable=True)[file.path].written == (len(whole), None)


def test_a_file_is_at_its_size_before_anybody_writes_and_nobody_makes_it_again(tmp_path):
    plan = planned(tmp_path)
    (tmp_path / "out").mkdir()
    shares = parts_of(plan, 3)
    form, (file,) = Marked(plan.dictionaries), plan.files
    path = tmp_path / "out" / file.path
    for share in shares[1:]:
        create_shared(plan, share, tmp_path / "out", form)
    assert not path.exists()
    create_shared(plan, shares[0], tmp_path / "out", form)
    before = path.stat()
    assert before.st_size == len(content(plan, file))
    with patch.object(writing, "write_frame", side_effect=AssertionError), SourceFiles() as sources:
        counters = Counters(lambda _: None)
        means = Means(io=IO, counters=counters, sources=sources, buffers=small_buffers(1), must_stop=lambda: False)
        # The last one is the first to come.
        for share in reversed(shares):
            write_parts(plan, share, tmp_path / "out", form, means)
    assert (path.read_bytes(), path.stat().st_ino) == (content(plan, file), before.st_ino)


def test_each_process_makes_its_range_durable(tmp_path):
    plan = planned(tmp_path)
    (tmp_path / "out").mkdir()
    shares = parts_of(plan, 3)
    with patch.object(writing, "synchronise", side_effect=lambda files: durable.append(list(dict(files)))):
        durable: list[list[str]] = []
        written(plan, tmp_path / "out", shares, InputOutput(fsync=True))
    assert durable == [[str(tmp_path / "out" / plan.files[0].path)]] * 3


def test_a_file_that_another_process_did_not_make_is_an_error(tmp_path):
    """As where two nodes see another directory."""
    plan = planned(tmp_path)
    _, second, _ = parts_of(plan, 3)
    (tmp_path / "out").mkdir()
    with pytest.raises(JobError, match=f"{tmp_path}/out/mp_rank_00/model_optim_rng.pt: No such file"):
        written(plan, tmp_path / "out", [second])
    with pytest.raises(JobError, match=f"{tmp_path}/none: made by the first process, not seen here"):
        create_shared(plan, second, tmp_path / "none", Marked(plan.dictionaries))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_file_of_which_a_part_is_missing_is_not_finished(tmp_path, missing):
    plan = planned(tmp_path)
    (tmp_path / "out").mkdir()
    told = written(plan, tmp_path / "out", parts_of(plan, 3))
    del told[missing]
    with pytest.raises(JobError, match="was not written, or twice"):
        finished_files(tmp_path / "out", told, durable=False)


@given(some.binary(min_size=1, max_size=60), some.lists(some.integers(0, 60), max_size=5), some.randoms())
def test_the_checksum_follows_from_those_of_parts_in_any_order(data, cuts, random):
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    ranges = [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if start < stop]
    pieces: list[Piece] = [(start, stop - start, crc32(data[start:stop])) for start, stop in ranges]
    random.shuffle(pieces)
    told = [{"f": WrittenPart(len(data), pieces[rank::2], {})} for rank in range(2)]
    assert finished_files(Path("d"), told, durable=True)["f"].written == (len(data), crc32(data))


def test_what_casts_made_infinite_is_that_of_all_parts():
    one = WrittenPart(2, [(0, 1, crc32(b"a"))], {"float16": {"f: x": 3}})
    other = WrittenPart(2, [(1, 1, crc32(b"b"))], {"float16": {"f: y": 4}, "bfloat16": {"f: z": 1}})
    (found,) = finished_files(Path("d"), [{"f": one}, {}, {"f": other}], durable=False).values()
    assert found.overflowed == {"float16": {"f: x": 3, "f: y": 4}, "bfloat16": {"f: z": 1}}


@pytest.mark.parametrize(("option", "on_ext4", "on_nfs"), [
    ("auto", True, False), ("true", True, True), ("false", False, False)
])  # fmt: skip
def test_the_option_outranks_the_file_system(monkeypatch, option, on_ext4, on_nfs):
    text = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /nonesuch rw - nfs4 b rw"
    monkeypatch.setattr(sharing, "mounts", lambda: parsed(text))
    io = InputOutput(shared_files=option)
    assert may_be_shared(Path("/x/y"), io) == on_ext4
    assert may_be_shared(Path("/nonesuch/y"), io) == on_nfs
