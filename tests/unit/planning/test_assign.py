"""Files are divided over processes: each once, in order, balanced, and the same on any process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.records import OutputFile
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
def test_each_file_has_one_writer_and_processes_follow_the_coordinates(files, processes):
    shares = assign(files, processes)
    assert len(shares) == processes
    assert [file for share in shares for file in share] == sorted(files, key=coordinates)


@given(outputs(), st.integers(1, 70))
def test_no_process_is_idle_while_another_could_give_it_a_file(files, processes):
    shares = assign(files, processes)
    assert sum(len(share) > 0 for share in shares) == min(processes, len(files))


@given(outputs(), st.integers(1, 70))
def test_the_heaviest_share_is_at_most_an_even_share_and_a_file(files, processes):
    heaviest = max(sum(file.nbytes for file in share) for share in assign(files, processes))
    sizes = [file.nbytes for file in files]
    assert heaviest <= sum(sizes) / processes + max(sizes)


@given(outputs(), st.integers(1, 70), st.randoms())
def test_every_process_finds_the_same_answer(files, processes, random):
    shuffled = list(files)
    random.shuffle(shuffled)
    assert assign(shuffled, processes) == assign(files, processes)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        # Fewer processes than (tp, ep) coordinates own several; more divide the pipeline stages of one.
        (1, [4 * 2 * 2]),
        (2, [8, 8]),
        (4, [4, 4, 4, 4]),
        (8, [2] * 8),
        (16, [1] * 16),
        (20, [1] * 16 + [0] * 4),
    ],
)
def test_processes_own_whole_coordinates_where_there_are_enough(processes, expected):
    files = [output(tp, pp, ep, 100) for tp in range(2) for pp in range(4) for ep in range(2)]
    shares = assign(files, processes)
    assert [len(share) for share in shares] == expected
    if processes == 4:
        assert [{coordinates(file)[:2] for file in share} for share in shares] == [
            {(0, 0)}, {(0, 1)}, {(1, 0)}, {(1, 1)}
        ]  # fmt: skip
