"""Steps produce exactly the bytes of the shards, within their buffers, and read no more than they must."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distconv.runtime.lanes import Lanes
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.operators import OPERATORS
from distconv.tensors.virtual import Index, VirtualTensor, chunk, concat, narrow, permute, select, split, whole, zeros
from distconv.transfer import lower as lowering
from distconv.transfer import steps
from distconv.transfer.lower import buffer_for, lower
from distconv.transfer.steps import CopyRun, Gather, Read, Step, bytes_read
from tests.unit.programs import Program, numbered, programs
from tests.unit.reference import Execution, execute

DTYPES = st.sampled_from(["uint8", "bfloat16", "float32", "float64"])
# Bytes from which on a run is copied in the kernel, and gaps that are read over: none, some, all of a small test.
RUN_BYTES = st.sampled_from([1, 24, 64 * 1024])
GAP_BYTES = st.sampled_from([0, 16, 64 * 1024])


def as_bytes(array: np.ndarray, dtype: str) -> bytes:
    """The elements as they are stored, their numbers cut to the size of an element."""
    return array.astype(f"u{ITEM_SIZE[dtype]}").tobytes()


def lowered(
    shards: Sequence[VirtualTensor],
    source_shapes: Sequence[Index],
    buffer_bytes: int,
    run_bytes: int = 64 * 1024,
    gap_bytes: int = 64 * 1024,
) -> list[Step]:
    with patch.object(lowering, "MIN_RUN_BYTES", run_bytes), patch.object(steps, "MAX_GAP_BYTES", gap_bytes):
        return list(lower(shards, source_shapes, buffer_bytes))


def produce(program: Program, buffer_bytes: int, run_bytes: int, gap_bytes: int) -> tuple[list[Step], Execution]:
    """Lower a program and execute the steps; every bound is checked on the way."""
    source_shapes = [operand.shape for operand in program.operands]
    result = lowered(program.tensors, source_shapes, buffer_bytes, run_bytes, gap_bytes)
    sources = [as_bytes(operand, program.dtype) for operand in program.operands]
    return result, execute(result, program.tensors, sources, buffer_bytes)


@settings(max_examples=300)
@given(DTYPES.flatmap(programs), RUN_BYTES, GAP_BYTES, st.integers(1, 40) | st.just(10_000))
def test_the_bytes_are_those_of_the_tensors(program, run_bytes, gap_bytes, elements):
    # From one element for each shard on, any buffer will do.
    buffer_bytes = max(elements, len(program.values)) * ITEM_SIZE[program.dtype]

    result, execution = produce(program, buffer_bytes, run_bytes, gap_bytes)

    for value, shard, written in zip(program.values, execution.shards, execution.written, strict=True):
        assert shard == as_bytes(value.array, program.dtype)
        assert all(written)
    assert bytes_read(result) == execution.read


@given(programs(dtype="float32"), st.integers(1, 40))
def test_a_large_buffer_takes_a_shard_in_one_gather(program, run_bytes):
    result, _ = produce(program, 1024 * 1024, run_bytes, 0)
    assert sum(isinstance(step, Gather) for step in result) <= 1


@given(DTYPES, st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), GAP_BYTES, st.integers(0, 3))
def test_column_shards_produced_together_read_the_matrix_once(dtype, size, rows, columns, row_room, gap_bytes, extra):
    """As long as the buffer holds a row, however small or large the gaps are that may be read over."""
    matrix = whole(dtype, (rows, size * columns))
    row_bytes = size * columns * ITEM_SIZE[dtype]
    shards = chunk(matrix, size, dim=1)

    result = lowered(shards, [matrix.shape], row_room * row_bytes + extra, gap_bytes=gap_bytes)

    assert bytes_read(result) == rows * row_bytes


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), GAP_BYTES)
def test_replicas_that_are_gathered_together_read_the_source_once(replicas, rows, columns, gap_bytes):
    tensor = whole("float32", (rows, columns))
    buffer_bytes = replicas * columns * 4
    result = lowered([tensor] * replicas, [tensor.shape], buffer_bytes, gap_bytes=gap_bytes)
    assert bytes_read(result) == rows * columns * 4


def test_small_gaps_are_read_over_and_large_ones_skipped():
    half = chunk(whole("uint8", (4, 20)), 2, dim=1)[1]
    (over,) = lowered([half], [(4, 20)], 1000, gap_bytes=10)
    (skipping,) = lowered([half], [(4, 20)], 1000, gap_bytes=9)
    assert [(read.offset, read.nbytes) for read in over.reads] == [(10, 70)]
    assert [(read.offset, read.nbytes) for read in skipping.reads] == [(10, 10), (30, 10), (50, 10), (70, 10)]


def test_a_long_run_is_copied_from_file_to_file():
    shard = chunk(whole("bfloat16", (64, 1024)), 2)[1]
    assert lowered([shard], [(64, 1024)], 4096) == [CopyRun(0, 64 * 1024, 0, 0, 64 * 1024)]
    (shorter, *_) = lowered([narrow(shard, 0, 0, 31)], [(64, 1024)], 4096)
    assert isinstance(shorter, Gather)


def test_boxes_that_continue_one_another_are_one_run():
    tensor = whole("uint8", (6, 10))
    joined = concat(split(tensor, [1, 2, 3]))
    assert lowered([joined], [(6, 10)], 100, run_bytes=60) == [CopyRun(0, 0, 0, 0, 60)]
    turned = concat([narrow(tensor, 0, 3, 3), narrow(tensor, 0, 0, 3)])
    assert lowered([turned], [(6, 10)], 100, run_bytes=30) == [CopyRun(0, 30, 0, 0, 30), CopyRun(0, 0, 0, 30, 30)]


def test_runs_of_two_operands_are_two_even_where_their_offsets_continue_each_other():
    """As where one tensor has the first rows, and another one of its shape those that follow."""
    first, second = (whole("uint8", (6, 10), operand) for operand in (0, 1))
    joined = concat([narrow(first, 0, 0, 3), narrow(second, 0, 3, 3)])
    assert lowered([joined], [(6, 10)] * 2, 100, run_bytes=30) == [
        CopyRun(0, 0, 0, 0, 30), CopyRun(1, 30, 0, 30, 30)
    ]  # fmt: skip
    (gather,) = lowered([joined], [(6, 10)] * 2, 100)
    assert [(read.operand, read.offset, read.nbytes) for read in gather.reads] == [(0, 0, 30), (1, 30, 30)]


@pytest.mark.parametrize("start", [0, 2])
def test_a_read_within_another_one_does_not_shorten_it(start):
    """A replica of all rows beside a shard of some."""
    tensor = whole("uint8", (6, 10))
    shards = [tensor, narrow(tensor, 0, start, 2), narrow(tensor, 0, 5, 1)]
    (gather,) = lowered(shards, [(6, 10)], 200)
    assert [(read.offset, read.nbytes, len(read.moves)) for read in gather.reads] == [(0, 60, 3)]
    source = numbered((6, 10))
    execution = execute([gather], shards, [as_bytes(source, "uint8")], 200)
    assert execution.shards == [as_bytes(part, "uint8") for part in (source, source[start : start + 2], source[5:])]


def test_grouped_qkv_is_copied_in_runs_of_groups():
    hidden, groups, group_rows = 512, 2, 64
    shapes = [(groups * rows * group_rows, hidden) for rows in (4, 1, 1)]
    fused = OPERATORS["qkv_group"].apply(*(whole("bfloat16", shape, number) for number, shape in enumerate(shapes)), 2)
    result = lowered([fused], shapes, 1024 * 1024)
    assert [(step.operand, step.nbytes // (hidden * 2 * group_rows)) for step in result] == [
        (0, 4), (1, 1), (2, 1), (0, 4), (1, 1), (2, 1)
    ]  # fmt: skip


def test_zeros_are_written_like_everything_else():
    """Also beside long runs: what is compared with a result must be all of it."""
    for shard in (
        zeros("uint8", (5, 10)),
        concat([zeros("uint8", (5, 10)), whole("uint8", (3, 10))]),
        concat([whole("uint8", (3, 10)), zeros("uint8", (5, 10))]),
    ):
        result = lowered([shard], [(3, 10)], 100, run_bytes=30)
        assert all(isinstance(step, Gather) and step.zero for step in result)
        assert sum(write.nbytes for step in result for write in step.writes) == shard.elements


def test_a_transposed_matrix_is_read_in_blocks_not_element_by_element():
    tensor = permute(whole("float32", (64, 64)), (1, 0))
    result = lowered([tensor], [(64, 64)], 4 * 1024)
    assert len(result) == 3
    assert all(len(step.reads) == 32 for step in result)
    assert all(read.nbytes <= 4 * 1024 // 8 for step in result for read in step.reads)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 16), st.integers(1, 6))
def test_a_transposition_reads_the_source_once_for_each_block(shards, row_blocks, columns, buffer_rows):
    """And a block has nearly all of the memory."""
    rows, buffer_bytes = row_blocks * 8, shards * max(buffer_rows * columns, row_blocks * 8)
    source = (rows, shards * columns)
    result = lowered(chunk(permute(whole("uint8", source), (1, 0)), shards), [source], buffer_bytes)
    columns_of_a_block = min((2 * buffer_bytes - buffer_bytes // 8) // shards // rows, columns)
    assert len(result) == -(-columns // columns_of_a_block)
    assert bytes_read(result) <= len(result) * prod(source)


def test_a_packed_expert_is_read_once_where_two_buffers_hold_it():
    """4096 x 3072 elements are 24 MiB."""
    mib, source = 1024 * 1024, (2, 4096, 3072)
    expert = permute(select(whole("bfloat16", source), 0, 1), (1, 0))
    gate, up = chunk(expert, 2)
    parts = [concat(list(pair)) for pair in zip(chunk(gate, 4), chunk(up, 4), strict=True)]
    for buffer_mib, times in ((16, 1), (13, 1), (12, 2), (8, 2), (4, 4)):
        for shards in ([expert], parts):
            assert bytes_read(lowered(shards, [source], buffer_mib * mib)) == pytest.approx(times * 24 * mib, rel=0.01)


LANES = Lanes(threads=12, buffer_bytes=2 << 20, large_bytes=8 << 20, threads_at_first=12, cores=1)


def by_head(heads: int, head_bytes: int) -> tuple[VirtualTensor, Index]:
    """A fused qkv that has q, k and v apart, of one by head; and the shape of that."""
    source = (heads * 3 * head_bytes,)
    parts = chunk(whole("uint8", source), heads * 3)
    return concat([parts[head * 3 + part] for part in range(3) for head in range(heads)]), source


def test_what_is_read_of_many_places_has_large_buffers_which_make_it_one_read():
    """Requests, not bytes, are what a file system that is far away takes its time for."""
    tensor, source = by_head(16, 100 * 1024)
    for found in (tensor, narrow(tensor, 0, 0, tensor.elements // 2)):
        assert buffer_for([found], [source], LANES) == LANES.large_bytes
    (step,) = list(lower([tensor], [source], LANES.large_bytes))
    assert len(step.reads) == 1
    assert sum(len(each.reads) for each in lower([tensor], [source], LANES.buffer_bytes)) > 20


def test_a_transposition_has_large_buffers():
    assert buffer_for([permute(whole("bfloat16", (4096, 1024)), (1, 0))], [(4096, 1024)], LANES) == LANES.large_bytes
    strided = chunk(whole("bfloat16", (8, 4, 64 * 1024)), 4, dim=1)[1]
    assert buffer_for([strided] * 8, [(8, 4, 64 * 1024)], LANES) == LANES.large_bytes


def test_what_is_one_block_or_read_as_it_lies_has_small_buffers():
    transposed, matrix = permute(whole("bfloat16", (1024, 1024)), (1, 0)), (8192, 8192)
    fused, source = by_head(16, 1024 * 1024)
    columns, rows = (chunk(whole("bfloat16", matrix), 2, dim=dim) for dim in (1, 0))
    for shards, shape in (([transposed], (1024, 1024)), (columns, matrix), (rows, matrix), ([fused], source)):
        assert buffer_for(shards, [shape], LANES) == LANES.buffer_bytes


def test_dims_that_keep_their_order_leave_the_buffers_as_they_are():
    half = chunk(whole("uint8", (100, 20)), 2, dim=1)[1]
    (first, *_) = lowered([half], [(100, 20)], 400)
    assert sum(write.nbytes for write in first.writes) == 400


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_a_scalar_is_produced(dtype):
    scalar = numbered(())
    (step,) = lowered([whole(dtype, ())], [()], 8)
    execution = execute([step], [whole(dtype, ())], [as_bytes(scalar, dtype)], 8)
    assert execution.shards == [as_bytes(scalar, dtype)]


@given(programs(dtype="uint8", max_values=1), st.integers(1, 200))
def test_reads_of_a_gather_are_ascending_and_do_not_touch_if_they_would_fit_together(program, elements):
    assume(program.operands)
    result, _ = produce(program, elements, 64 * 1024, 0)
    turning = any(lowering._turns(copy) for tensor in program.tensors for copy in tensor.copies)
    room = max(elements // 8, 1) if turning else elements
    for step in result:
        reads: Sequence[Read] = step.reads
        assert sorted(reads, key=lambda read: (read.operand, read.offset)) == list(reads)
        for one, other in pairwise(reads):
            if one.operand == other.operand and one.offset + one.nbytes >= other.offset:
                assert other.offset + other.nbytes - one.offset > room


@given(programs(dtype="bfloat16"), st.sampled_from(["bfloat16", "float32", "float64"]), st.integers(1, 40), GAP_BYTES)
def test_what_is_read_as_it_is_stored_fits_the_buffers(program, stored, elements, gap_bytes):
    """Of whatever type it is, while steps count as if it were of the type that is made."""
    times = ITEM_SIZE[stored] // ITEM_SIZE["bfloat16"]
    buffer_bytes = max(elements, len(program.values)) * ITEM_SIZE[stored]
    shapes = [operand.shape for operand in program.operands]
    with patch.object(steps, "MAX_GAP_BYTES", gap_bytes):
        result = list(lower(program.tensors, shapes, buffer_bytes, [stored] * len(shapes)))
    for step in result:
        if isinstance(step, Gather):
            written = sum(write.nbytes for write in step.writes)
            assert all(written + times * read.nbytes <= 2 * buffer_bytes for read in step.reads)
