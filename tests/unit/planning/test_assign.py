"""Files are divided over processes: each once, balanced, the same on any process, by what they are made from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.records import OutputFile
from distconv.layout.partition import balanced_ranges
from distconv.planning.assign import assign


def output(tp_rank: int, pp_rank: int, ep_rank: int, nbytes: int) -> OutputFile:
    return OutputFile(
        path=f"{tp_rank} {pp_rank} {ep_rank}", nbytes=nbytes, order=(ep_rank, tp_rank, pp_rank), batch=pp_rank
    )


@st.composite
def outputs(draw: st.DrawFn) -> list[OutputFile]:
    """The files of a layout, in any order."""
    tp, pp, ep = (draw(st.integers(1, 4)) for _ in range(3))
    found = [
        output(tp_rank, pp_rank, ep_rank, draw(st.integers(0, 1000)))
        for tp_rank in range(tp)
        for pp_rank in range(pp)
        for ep_rank in range(ep)
    ]
    return draw(st.permutations(found))


def coordinates(file: OutputFile) -> tuple[int, ...]:
    return file.order


@given(outputs(), st.integers(1, 70))
def test_each_file_has_one_writer(files, processes):
    shares = assign(files, processes)
    assert len(shares) == processes
    assert sorted((file for share in shares for file in share), key=coordinates) == sorted(files, key=coordinates)


@given(outputs(), st.integers(1, 70))
def test_no_process_is_idle_while_another_could_give_it_a_file(files, processes):
    shares = assign(files, processes)
    assert sum(len(share) > 0 for share in shares) == min(processes, len(files))


@given(outputs(), st.integers(1, 70))
def test_neighbours_begin_with_the_same_sources(files, processes):
    firsts = [min(file.batch for file in share) for share in assign(files, processes) if share]
    assert firsts == sorted(firsts)


@given(outputs(), st.integers(1, 70))
def test_balance_is_given_up_for_reads_by_a_sixteenth_at_most(files, processes):
    """Of the heaviest share; in the order of files, which mixes the pipeline ranks, runs are balanced best."""
    heaviest = max(sum(file.nbytes for file in share) for share in assign(files, processes))
    sizes = [file.nbytes for file in sorted(files, key=coordinates)]
    mixed = max(sum(sizes[part.start : part.stop]) for part in balanced_ranges(sizes, processes))
    assert heaviest <= mixed * 17 / 16


@given(outputs(), st.integers(1, 70), st.randoms())
def test_every_process_finds_the_same_answer(files, processes, random):
    shuffled = list(files)
    random.shuffle(shuffled)
    assert assign(shuffled, processes) == assign(files, processes)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (1, [4 * 2 * 2]),
        (2, [8, 8]),
        (4, [4, 4, 4, 4]),
        (8, [2] * 8),
        (16, [1] * 16),
        (20, [1] * 16 + [0] * 4),
    ],
)
def test_processes_own_whole_pipeline_ranks_and_then_neighbours_share_them(processes, expected):
    files = [output(tp, pp, ep, 100) for tp in range(2) for pp in range(4) for ep in range(2)]
    shares = assign(files, processes)
    assert [len(share) for share in shares] == expected
    batches = [number for share in shares for number in sorted(file.batch for file in share)]
    assert batches == sorted(file.batch for file in files)


def test_where_pipeline_ranks_differ_in_size_processes_have_files_of_several_in_step():
    """A process for each coordinate; neighbours begin with the same pipeline rank, of all tensor parallel ranks."""
    files = [output(tp, pp, ep, 300 - 100 * pp) for tp in range(2) for pp in range(2) for ep in range(4)]
    shares = assign(files, 8)
    assert [[coordinates(file) for file in share] for share in shares] == [
        [(ep, tp, 0), (ep, tp, 1)] for ep in range(4) for tp in range(2)
    ]
    # Twice as many divide each of them.
    assert [[coordinates(file) for file in share] for share in assign(files, 16)] == [
        [(ep, tp, pp)] for pp in range(2) for ep in range(4) for tp in range(2)
    ]


def test_groups_are_as_small_as_keep_the_balance():
    """Two pipeline ranks alike, and two; a group has files of two, and no other process reads these."""
    sizes = [300, 100, 300, 100]
    files = [output(tp, pp, 0, sizes[pp]) for tp in range(4) for pp in range(4)]
    shares = assign(files, 8)
    assert [{file.batch for file in share} for share in shares] == [{0, 1}] * 4 + [{2, 3}] * 4


def test_files_without_a_source_in_common_are_cut_in_their_order():
    files = [OutputFile(path=str(number), nbytes=100 + number, order=(number,), batch=number) for number in range(37)]
    for processes in (1, 4, 8, 36, 50):
        found = [file for share in assign(files, processes) for file in share]
        assert found == files
