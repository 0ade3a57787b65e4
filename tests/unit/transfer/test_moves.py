"""Elements are cast as they are moved, whatever tensors are made of them, in any blocks; what overflows is counted."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distconv.errors import JobError
from distconv.formats.records import Entry, OutputFile
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.stored import Assembled, LowRank, SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, chunk, concat, permute, whole
from distconv.transfer import engine
from distconv.transfer import lower as lowering
from distconv.transfer.engine import Shard, Work
from distconv.transfer.files import OpenFiles
from distconv.transfer.planned_reads import planned_reads
from distconv.transfer.sinks import CompareSink, Counters, WriteSink
from distconv.transfer.sources import SourceFiles
from tests.unit.buffers import produce, small_buffers, small_lanes
from tests.unit.programs import Program, programs
from tests.unit.transfer.test_batches import Listed

# Where data starts in the files, which is no multiple of an element.
START = 41


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored(directory: Path, tensors: list[torch.Tensor]) -> tuple[StoredTensor, ...]:
    """Each tensor in a file of its own."""
    found = []
    for number, tensor in enumerate(tensors):
        path = directory / f"source{number}"
        path.write_bytes(bytes(START) + raw(tensor) + b"tail")
        dtype, file = str(tensor.dtype).removeprefix("torch."), SourceFile(str(path), path.stat().st_size)
        found.append(StoredTensor(f"tensor{number}", dtype, tuple(tensor.shape), file, START))
    return tuple(found)


def work_for(directory: Path, tables: list[VirtualTensor], sources: tuple[StoredTensor, ...], **more: object) -> Work:
    """All tensors one after the other in one file."""
    path, offset, shards = directory / "target", START, []
    for number, table in enumerate(tables):
        shards.append(Shard(table, str(path), offset, f"shard {number}"))
        offset += table.nbytes
    path.write_bytes(bytes(offset))
    return Work(sources, tuple(shards), **more)


def moved(work: Work, *, buffer_bytes: int = 4096, compare: bool = False) -> tuple[Counters, set[tuple[str, int]]]:
    counters = Counters(lambda _: None)
    with SourceFiles() as sources, OpenFiles(os.O_RDONLY if compare else os.O_WRONLY) as targets:
        sink = CompareSink(targets, counters) if compare else WriteSink(targets, counters)
        produce([work], sink, sources, counters, small_buffers(2, buffer_bytes))
        return counters, sink.different if isinstance(sink, CompareSink) else set()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    programs(dtype="float32"),
    st.sampled_from(FLOATING),
    st.lists(st.sampled_from(FLOATING), min_size=1, max_size=3),
    st.sampled_from([1, 64 * 1024]),
    st.sampled_from([64, 4096]),
    st.sampled_from([16, 1024]),
)
def test_any_tensors_are_cast(tmp_path, program: Program, into, types, run_bytes, buffer_bytes, piece):
    """Over operands of several types, each of which is cast on its own; numbers here are whole, up to a few hundred."""
    with ExitStack() as patches:
        patches.enter_context(patch.object(lowering, "MIN_RUN_BYTES", run_bytes))
        patches.enter_context(patch.object(engine, "_CAST_PIECE", piece))
        operands = [
            (torch.from_numpy(each).double() / 3).to(getattr(torch, types[number % len(types)]))
            for number, each in enumerate(program.operands)
        ]
        sources = stored(tmp_path, operands)
        tables = [VirtualTensor(into, each.shape, each.copies) for each in program.tensors]
        work = work_for(tmp_path, tables, sources)

        counters, _ = moved(work, buffer_bytes=buffer_bytes)

        cast = torch.cat(
            [
                torch.zeros(1, dtype=getattr(torch, into)),
                *(each.to(getattr(torch, into)).reshape(-1) for each in operands),
            ]
        )
        expected = b"".join(raw(cast[torch.from_numpy(np.array(value.array))]) for value in program.values)
        assert (tmp_path / "target").read_bytes() == bytes(START) + expected
        assert moved(work, buffer_bytes=buffer_bytes, compare=True)[1] == set()
        entries = [Entry(sources, table, "w", key=str(number), group=0) for number, table in enumerate(tables)]
        shares, lanes = [[OutputFile(path="file", nbytes=0, order=(), batch=0)]], small_lanes(2, buffer_bytes)
        assert planned_reads(Listed({"file": entries}), shares, lanes).asked == [counters.read]


@pytest.mark.parametrize("into", FLOATING)
def test_parts_of_one_read_are_cast_where_they_lie(tmp_path, into):
    """Parts in another order are read at once, and begin in the middle of what was read."""
    tensor = torch.arange(24.0).reshape(6, 4)
    whole_of_it = whole(into, (6, 4))
    turned = concat(chunk(whole_of_it, 3)[::-1])
    with patch.object(lowering, "MIN_RUN_BYTES", 64 * 1024):
        work = work_for(tmp_path, [turned], stored(tmp_path, [tensor]))
        moved(work)
    expected = torch.cat(list(reversed(tensor.chunk(3)))).to(getattr(torch, into))
    assert (tmp_path / "target").read_bytes() == bytes(START) + raw(expected)


@pytest.mark.parametrize("run_bytes", [1, 64 * 1024])
def test_a_byte_that_differs_in_what_was_cast_is_found(tmp_path, run_bytes):
    with patch.object(lowering, "MIN_RUN_BYTES", run_bytes):
        work = work_for(tmp_path, [whole("bfloat16", (50,))], stored(tmp_path, [torch.randn(50)]))
        moved(work)
        content = bytearray((tmp_path / "target").read_bytes())
        content[START + 61] ^= 1
        (tmp_path / "target").write_bytes(content)
        ((_, offset),) = moved(work, buffer_bytes=20, compare=True)[1]
        assert offset <= START + 61 < offset + 20


@pytest.mark.parametrize("run_bytes", [1, 64 * 1024])
@pytest.mark.parametrize("buffer_bytes", [64, 4096])
def test_what_overflows_is_counted_where_it_is_written(tmp_path, run_bytes, buffer_bytes):
    """Once for each element of the result: a column cut reads what it leaves out, and two shards hold the same."""
    tensor = torch.zeros(6, 8)
    tensor[0, 0] = tensor[3, 5] = tensor[5, 7] = 1e5
    tensor[1, 1] = float("inf")
    left, right = chunk(whole("float16", (6, 8)), 2, dim=1)
    turned = permute(whole("float16", (6, 8)), (1, 0))
    with patch.object(lowering, "MIN_RUN_BYTES", run_bytes):
        sources = stored(tmp_path, [tensor])
        work = work_for(tmp_path, [left, left, turned], sources)
        counters, _ = moved(work, buffer_bytes=buffer_bytes)
        assert counters.overflowed == {"float16": {"shard 0": 1, "shard 1": 1, "shard 2": 3}}
        counters, _ = moved(work_for(tmp_path, [right], sources), buffer_bytes=buffer_bytes)
        assert counters.overflowed == {"float16": {"shard 0": 2}}
        counters, _ = moved(work_for(tmp_path, [whole("float16", (6, 8))], sources), buffer_bytes=buffer_bytes)
        assert counters.overflowed == {"float16": {"shard 0": 3}}


@pytest.mark.parametrize("into", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("of_base", ["bfloat16", "float32"])
def test_a_sum_is_rounded_once_to_the_type_of_the_result(tmp_path, of_base, into):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 800, generator=generator).to(getattr(torch, of_base))
    b, a = torch.randn(300, 4, generator=generator).bfloat16(), torch.randn(4, 800, generator=generator).bfloat16()
    b[0] = 1e5
    sources = stored(tmp_path, [base, b, a])
    factors = [Assembled((source,), whole("bfloat16", source.shape)) for source in sources[1:]]
    work = work_for(tmp_path, [whole(into, (300, 800))], sources[:1], low_rank=LowRank(factors[0], factors[1], 0.37))

    counters, _ = moved(work)

    total = base.float() + b.float() @ a.float() * 0.37
    assert (tmp_path / "target").read_bytes()[START:] == raw(total.to(getattr(torch, into)))
    assert (counters.overflowed == {}) == (into != "float16")


def test_a_source_that_shrinks_while_it_is_cast_is_named(tmp_path):
    (source,) = stored(tmp_path, [torch.randn(50)])
    os.truncate(source.file.path, 50)
    work = work_for(
        tmp_path,
        [whole("bfloat16", (50,))],
        (StoredTensor("w", "float32", (50,), SourceFile(source.file.path, 50), START),),
    )
    with pytest.raises(JobError, match=rf"reading w from {source.file.path}: the file ends at byte 50: truncated"):
        moved(work)
