"""Files are divided over processes: each once, balanced, the same on any process, by what they are made from."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.records import Entry, FilePart, OutputFile, entries_of
from distconv.layout.partition import balanced_ranges
from distconv.planning.assign import assign, assign_parts, gains_by_parts
from distconv.tensors.virtual import zeros
from tests.configuration import job


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


class Grouped:
    """A plan of files whose entries are sizes in bytes with their groups, by path."""

    unconverted = ()

    def __init__(self, held: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        self.held = held

    @property
    def files(self) -> tuple[OutputFile, ...]:
        return tuple(
            OutputFile(path=path, nbytes=sum(nbytes for nbytes, _ in each), order=(number,), batch=number)
            for number, (path, each) in enumerate(self.held.items())
        )

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        assert file in self.files
        return (
            Entry((), zeros("uint8", (nbytes,)), str(number), key="", group=group)
            for number, (nbytes, group) in enumerate(self.held[file.path])
        )

    def summary(self) -> dict[str, Any]:
        return {}


def apart(*sizes: int) -> list[tuple[int, int]]:
    """Entries of which each is made from a read of its own."""
    return [(nbytes, number) for number, nbytes in enumerate(sizes)]


ENTRIES = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 6)), max_size=12)
PLANS = st.lists(ENTRIES, min_size=1, max_size=5).map(
    lambda held: Grouped({f"{number}.safetensors": each for number, each in enumerate(held)})
)


@given(PLANS, st.integers(1, 20))
def test_parts_are_all_of_each_file_and_each_entry_has_one_writer(plan, processes):
    shares = assign_parts(plan, plan.files, processes, shared=True)
    assert len(shares) == processes
    found: dict[str, list[tuple[int, int]]] = {}
    for file in (file for share in shares for file in share):
        entries = entries_of(plan, file)
        assert file.nbytes == sum(entry.nbytes for entry in entries)
        start, stop = (file.start, file.stop) if isinstance(file, FilePart) else (0, len(entries))
        found.setdefault(file.path, []).append((start, stop))
    for file in plan.files:
        parts = found.pop(file.path)
        assert [0, *(stop for _, stop in parts)] == [*(start for start, _ in parts), len(plan.held[file.path])]
        # So there is one process that makes it.
        assert sum(start == 0 for start, _ in parts) == 1
    assert found == {}


@given(PLANS, st.integers(1, 20))
def test_what_is_made_from_one_read_has_one_writer(plan, processes):
    writers: dict[tuple[str, Hashable], set[int]] = {}
    for rank, share in enumerate(assign_parts(plan, plan.files, processes, shared=True)):
        for file in share:
            for entry in entries_of(plan, file):
                writers.setdefault((file.path, entry.group), set()).add(rank)
    assert {len(each) for each in writers.values()} <= {1}


@given(st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 20))
def test_parts_are_balanced_as_well_as_entries_allow(held, processes):
    """Entries in a row can be cut so that no run is heavier than an equal share and the largest entry together."""
    plan = Grouped({f"{number}": apart(*sizes) for number, sizes in enumerate(held)})
    sizes = [nbytes for each in held for nbytes in each]
    loads = [sum(file.nbytes for file in share) for share in assign_parts(plan, plan.files, processes, shared=True)]
    if len(held) < processes:
        assert max(loads) <= sum(sizes) / processes + max(sizes)
        assert sum(load > 0 for load in loads) == min(processes, len(sizes))


@given(PLANS, st.integers(1, 20))
def test_without_need_or_permission_a_file_has_one_writer(plan, processes):
    alone = assign(plan.files, processes)
    assert assign_parts(plan, plan.files, processes, shared=False) == alone
    few = min(processes, len(plan.files))
    assert assign_parts(plan, plan.files, few, shared=True) == assign(plan.files, few)
    assert assign_parts(plan, (), processes, shared=True) == assign((), processes)


def test_a_process_can_have_the_end_of_one_file_and_the_beginning_of_the_next():
    plan = Grouped({"a": apart(10, 10, 10), "b": apart(10, 10, 10, 10, 10, 10)})
    shares = assign_parts(plan, plan.files, 3, shared=True)
    assert [[(file.path, file.nbytes) for file in share] for share in shares] == [
        [("a", 30)], [("b", 30)], [("b", 30)]
    ]  # fmt: skip
    # All of a file is the file.
    assert shares[0] == [plan.files[0]]
    shares = assign_parts(plan, plan.files, 4, shared=True)
    assert [[(file.path, file.nbytes) for file in share] for share in shares] == [
        [("a", 30)], [("b", 30)], [("b", 20)], [("b", 10)]
    ]  # fmt: skip
    plan = Grouped({"a": apart(10, 10, 10), "b": apart(10, 10, 10)})
    shares = assign_parts(plan, plan.files, 4, shared=True)
    assert [[(file.path, file.start, file.stop) for file in share] for share in shares] == [
        [("a", 0, 2)], [("a", 2, 3), ("b", 0, 1)], [("b", 1, 2)], [("b", 2, 3)]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target_format", "shared_files", "count", "processes", "gains"),
    [
        ("hf", "auto", 2, 4, True),
        ("hf", "true", 2, 3, True),
        ("hf", "false", 2, 4, False),
        ("hf", "auto", 2, 2, False),
        ("hf", "auto", 0, 2, False),
        ("megatron", "true", 2, 4, False),
        ("dcp", "true", 2, 4, False),
    ],
)
def test_parts_are_of_published_files_that_are_too_few(target_format, shared_files, count, processes, gains):
    plan = Grouped({f"{number}": apart(1) for number in range(count)})
    options = job(target_format=target_format, io__shared_files=shared_files)
    assert gains_by_parts(options, plan.files, processes) == gains
