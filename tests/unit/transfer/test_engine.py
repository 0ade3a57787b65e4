"""Steps run on real files: every byte lands where it belongs, is counted, and a failure names its file."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distconv.errors import JobError
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Assembled, LowRank, SourceFile, StoredTensor
from distconv.tensors.virtual import VirtualTensor, concat, narrow, permute, whole, zeros
from distconv.transfer import engine as transfer
from distconv.transfer import files, reading, sinks
from distconv.transfer import lower as lowering
from distconv.transfer.engine import Shard, Work, tasks_of
from distconv.transfer.files import OpenFiles
from distconv.transfer.lower import lower
from distconv.transfer.sinks import CompareSink, Counters, WriteSink
from distconv.transfer.sources import SourceFiles
from distconv.transfer.steps import bytes_read
from tests.unit.buffers import produce, small_buffers
from tests.unit.programs import Program, numbered, programs

DTYPE = "bfloat16"
# Where data starts in the files: not at their beginning.
START = 40


def stored(directory: Path, operands: Sequence[np.ndarray]) -> list[StoredTensor]:
    """Each operand in a file of its own."""
    tensors = []
    for number, operand in enumerate(operands):
        path = directory / f"source{number}"
        path.write_bytes(bytes(START) + operand.astype("u2").tobytes() + b"tail")
        file = SourceFile(str(path), path.stat().st_size)
        tensors.append(StoredTensor(f"tensor{number}", DTYPE, operand.shape, file, START))
    return tensors


def work_for(directory: Path, tensors: Sequence[VirtualTensor], sources: Sequence[StoredTensor]) -> Work:
    """All tensors one after the other in one file, laid out as zeros."""
    path, offset, shards = directory / "target", START, []
    for tensor in tensors:
        shards.append(Shard(tensor, str(path), offset))
        offset += tensor.elements * ITEM_SIZE[DTYPE]
    path.write_bytes(bytes(offset))
    return Work(tuple(sources), tuple(shards))


def transferred(
    work: Sequence[Work],
    *,
    threads: int = 2,
    buffer_bytes: int = 4096,
    compare: bool = False,
) -> tuple[Counters, set[tuple[str, int]]]:
    """Run, writing or comparing; the counters, and what differs."""
    counters = Counters(lambda _: None)
    with SourceFiles() as sources, OpenFiles(os.O_RDONLY if compare else os.O_WRONLY) as targets:
        sink = CompareSink(targets, counters) if compare else WriteSink(targets, counters)
        produce(work, sink, sources, counters, small_buffers(threads, buffer_bytes))
        return counters, sink.different if isinstance(sink, CompareSink) else set()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs(dtype=DTYPE), st.sampled_from([1, 64 * 1024]), st.sampled_from([64, 4096]), st.booleans())
def test_the_bytes_of_any_tensors_land_in_their_place(tmp_path, program: Program, run_bytes, buffer_bytes, in_kernel):
    with ExitStack() as patches:
        patches.enter_context(patch.object(lowering, "MIN_RUN_BYTES", run_bytes))
        patches.enter_context(patch.object(transfer, "_RUN_PIECE", 10))
        if not in_kernel:
            patches.enter_context(patch.object(os, "copy_file_range", side_effect=OSError(95, "not supported")))
        work = work_for(tmp_path, program.tensors, stored(tmp_path, program.operands))

        counters, _ = transferred([work], buffer_bytes=buffer_bytes)

        expected = b"".join(value.array.astype("u2").tobytes() for value in program.values)
        assert (tmp_path / "target").read_bytes() == bytes(START) + expected
        planned = list(lower(program.tensors, [operand.shape for operand in program.operands], buffer_bytes))
        assert counters.read == bytes_read(planned)
        assert counters.written <= len(expected)
        assert transferred([work], buffer_bytes=buffer_bytes, compare=True)[1] == set()


def test_runs_to_several_shards_are_written_in_turn(tmp_path):
    """Else all threads would write one file, and wait for each other."""
    sources = stored(tmp_path, [numbered((40, 10))])
    rows = whole(DTYPE, (40, 10))
    work = work_for(tmp_path, [narrow(rows, 0, 0, 20), narrow(rows, 0, 20, 10), narrow(rows, 0, 30, 10)], sources)
    with patch.object(lowering, "MIN_RUN_BYTES", 100), patch.object(transfer, "_RUN_PIECE", 100):
        steps = [task.step for task in tasks_of(work, small_buffers(2))]
    assert [step.shard for step in steps] == [0, 1, 2, 0, 1, 2, 0, 0]
    assert [step.target_offset for step in steps] == [0, 0, 0, 100, 100, 100, 200, 300]


def test_a_large_transposition_goes_in_strips(tmp_path):
    array = numbered((70, 100))
    work = work_for(tmp_path, [permute(whole(DTYPE, (70, 100)), (1, 0))], stored(tmp_path, [array]))
    transferred([work], buffer_bytes=1 << 20)
    found = np.frombuffer((tmp_path / "target").read_bytes()[START:], "u2").reshape(100, 70)
    np.testing.assert_array_equal(found, array.T)


@pytest.mark.parametrize("buffer_bytes", [4096, 1 << 20])
def test_a_product_is_added_whatever_the_size_of_the_buffers(tmp_path, buffer_bytes):
    """In blocks of rows, and equal to the sum of whole matrices to the bit."""
    generator = torch.Generator().manual_seed(0)
    shapes = (300, 8000), (300, 16), (16, 8000)
    base, b, a = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    sources = stored(tmp_path, [each.view(torch.int16).numpy().view(np.uint16) for each in (base, b, a)])
    factors = [Assembled((source,), whole(DTYPE, source.shape)) for source in sources[1:]]
    work = work_for(tmp_path, [whole(DTYPE, shapes[0])], sources[:1])

    transferred([replace(work, low_rank=LowRank(factors[0], factors[1], 0.37))], buffer_bytes=buffer_bytes)

    expected = (base.float() + b.float() @ a.float() * 0.37).bfloat16()
    found = np.frombuffer((tmp_path / "target").read_bytes()[START:], np.uint16)
    np.testing.assert_array_equal(found, expected.view(torch.int16).numpy().view(np.uint16).ravel())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_does_all_the_work(tmp_path, threads):
    work = []
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        sources = stored(tmp_path / str(number), [numbered((5, 7), first=number)])
        work.append(work_for(tmp_path / str(number), [whole(DTYPE, (5, 7))], sources))
    counters, _ = transferred(work, threads=threads)
    assert (counters.read, counters.written) == (20 * 70, 20 * 70)
    for number in range(20):
        found = (tmp_path / str(number) / "target").read_bytes()[START:]
        assert found == numbered((5, 7), first=number).astype("u2").tobytes()


@pytest.mark.parametrize("run_bytes", [1, 64 * 1024], ids=["a run", "blocks"])
def test_threads_share_a_large_tensor(tmp_path, run_bytes):
    """Each waits for the other where it reads for the first time."""
    values, barrier, known = numbered((400, 30)), threading.Barrier(2, timeout=10), threading.local()
    work = work_for(tmp_path, [whole(DTYPE, (400, 30))], stored(tmp_path, [values]))

    def together(descriptor: int, offset: int, buffer: memoryview) -> None:
        if not getattr(known, "came", False):
            known.came = True
            barrier.wait()
        files.read_into(descriptor, offset, buffer)

    with (
        patch.object(lowering, "MIN_RUN_BYTES", run_bytes),
        patch.object(transfer, "_RUN_PIECE", 1000),
        patch.object(sinks, "read_into", together),
        patch.object(reading, "read_into", together),
        patch.object(sinks, "copy_in_kernel", lambda *_: 0),
    ):
        transferred([work], threads=2, buffer_bytes=1000)
    assert (tmp_path / "target").read_bytes()[START:] == values.astype("u2").tobytes()


def test_elements_without_a_source_are_zeros_in_a_buffer_that_was_used_before(tmp_path):
    sources = stored(tmp_path, [numbered((10, 4), first=1)])
    work = work_for(tmp_path, [concat([whole(DTYPE, (10, 4)), zeros(DTYPE, (10, 4))])], sources)
    transferred([work], threads=1, buffer_bytes=40)
    assert (tmp_path / "target").read_bytes()[START:] == numbered((10, 4), first=1).astype("u2").tobytes() + bytes(80)


def test_progress_is_told_of_every_byte_done(tmp_path):
    done: list[int] = []
    counters = Counters(done.append)
    work = work_for(tmp_path, [whole(DTYPE, (5, 7))], stored(tmp_path, [numbered((5, 7))]))
    with SourceFiles() as sources, OpenFiles(os.O_WRONLY) as targets:
        produce([work], WriteSink(targets, counters), sources, counters, small_buffers(1, 16))
    assert sum(done) == 70
    assert len(done) > 1


@pytest.mark.parametrize("run_bytes", [1, 64 * 1024])
def test_a_byte_that_differs_is_found(tmp_path, run_bytes):
    with patch.object(lowering, "MIN_RUN_BYTES", run_bytes):
        work = work_for(tmp_path, [whole(DTYPE, (50,))], stored(tmp_path, [numbered((50,))]))
        transferred([work])
        content = bytearray((tmp_path / "target").read_bytes())
        content[START + 61] ^= 1
        (tmp_path / "target").write_bytes(content)
        _, different = transferred([work], buffer_bytes=20, compare=True)
        ((path, offset),) = different
        assert path == str(tmp_path / "target")
        assert offset <= START + 61 < offset + 20


def test_a_block_is_compared_in_pieces(tmp_path):
    work = work_for(tmp_path, [whole(DTYPE, (50,))], stored(tmp_path, [numbered((50,))]))
    transferred([work])
    content = bytearray((tmp_path / "target").read_bytes())
    content[START + 61] ^= 1
    (tmp_path / "target").write_bytes(content)
    with patch.object(sinks, "_PIECE", 10):
        assert transferred([work], compare=True)[1] == {(str(tmp_path / "target"), START + 60)}


def test_a_byte_that_differs_from_zeros_is_found(tmp_path):
    """The rows that `vocab_size` adds."""
    with patch.object(lowering, "MIN_RUN_BYTES", 1):
        padded = concat([whole(DTYPE, (50,)), zeros(DTYPE, (14,))])
        work = work_for(tmp_path, [padded], stored(tmp_path, [numbered((50,))]))
        transferred([work])
        content = bytearray((tmp_path / "target").read_bytes())
        content[-1] ^= 1
        (tmp_path / "target").write_bytes(content)
        assert transferred([work], compare=True)[1] != set()


@pytest.mark.parametrize("size", [50, 143, 145, 300])
@pytest.mark.parametrize("run_bytes", [1, 64 * 1024])
def test_a_source_that_has_changed_since_it_was_indexed_is_named(tmp_path, run_bytes, size):
    """Shorter or longer, and whether it is copied or gathered."""
    (source,) = stored(tmp_path, [numbered((50,))])
    work = work_for(tmp_path, [whole(DTYPE, (50,))], [source])
    os.truncate(source.file.path, size)
    with (
        patch.object(lowering, "MIN_RUN_BYTES", run_bytes),
        pytest.raises(
            JobError,
            match=f"{source.file.path}: was 144 bytes long when the job first read it, now {size}: it is being",
        ),
    ):
        transferred([work])


@pytest.mark.parametrize(("run_bytes", "doing"), [(1, "copying"), (64 * 1024, "reading")])
def test_a_source_that_shrinks_while_it_is_read_is_named(tmp_path, run_bytes, doing):
    (source,) = stored(tmp_path, [numbered((50,))])
    shrunk = replace(source, file=SourceFile(source.file.path, 50))
    os.truncate(source.file.path, 50)
    work = work_for(tmp_path, [whole(DTYPE, (50,))], [shrunk])
    with (
        patch.object(lowering, "MIN_RUN_BYTES", run_bytes),
        pytest.raises(
            JobError, match=f"{doing} tensor0 from {source.file.path}.*: the file ends at byte 50: truncated"
        ),
    ):
        transferred([work])


def test_a_source_that_is_gone_is_named(tmp_path):
    (source,) = stored(tmp_path, [numbered((50,))])
    work = work_for(tmp_path, [whole(DTYPE, (50,))], [source])
    os.unlink(source.file.path)
    with pytest.raises(JobError, match=f"reading tensor0 from {source.file.path}: No such file or directory"):
        transferred([work])


@pytest.mark.parametrize(("run_bytes", "doing"), [(1, "copying tensor0 from .* to "), (64 * 1024, "writing ")])
def test_a_target_that_is_full_is_named(tmp_path, run_bytes, doing):
    work = work_for(tmp_path, [whole(DTYPE, (50,))], stored(tmp_path, [numbered((50,))]))
    full = OSError(28, "No space left on device")
    with (
        patch.object(lowering, "MIN_RUN_BYTES", run_bytes),
        patch.object(os, "pwritev", side_effect=full),
        patch.object(os, "copy_file_range", side_effect=full),
        pytest.raises(JobError, match=f"{doing}{tmp_path}/target: No space left on device"),
    ):
        transferred([work])


def test_short_reads_and_writes_are_continued(tmp_path):
    """A system call may do less than it was asked for."""
    preadv, pwritev = os.preadv, os.pwritev
    work = work_for(tmp_path, [whole(DTYPE, (50,))], stored(tmp_path, [numbered((50,))]))
    with (
        patch.object(os, "preadv", lambda descriptor, views, offset: preadv(descriptor, [views[0][:7]], offset)),
        patch.object(os, "pwritev", lambda descriptor, views, offset: pwritev(descriptor, [views[0][:3]], offset)),
    ):
        transferred([work])
    assert (tmp_path / "target").read_bytes()[START:] == numbered((50,)).astype("u2").tobytes()


def test_a_copy_that_the_kernel_gives_up_halfway_is_finished(tmp_path):
    kernel, calls = os.copy_file_range, []

    def halfway(source: int, target: int, count: int, source_offset: int, offset: int) -> int:
        calls.append(count)
        if len(calls) > 1:
            raise OSError(18, "Invalid cross-device link")
        return kernel(source, target, count // 2, source_offset, offset)

    work = work_for(tmp_path, [whole(DTYPE, (50,))], stored(tmp_path, [numbered((50,))]))
    with patch.object(lowering, "MIN_RUN_BYTES", 1), patch.object(os, "copy_file_range", halfway):
        counters, _ = transferred([work])
    assert (tmp_path / "target").read_bytes()[START:] == numbered((50,)).astype("u2").tobytes()
    assert (counters.read, counters.written) == (100, 100)


def test_descriptors_are_closed(tmp_path):
    work = work_for(tmp_path, [whole(DTYPE, (50,))], stored(tmp_path, [numbered((50,))]))
    closed: list[int] = []
    close = os.close
    with patch.object(files.os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor))):
        transferred([work])
    assert len(closed) == 2
