"""Both sides of pairs are produced block by block and compared, in little memory, however they are stored."""

from __future__ import annotations

import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from distconv.input_output import InputOutput
from distconv.tensors.differences import Difference, Farthest
from distconv.tensors.pairs import Pair, PairPart, parts_of
from distconv.tensors.stored import Assembled, SourceFile, StoredTensor
from distconv.tensors.virtual import concat, permute, whole, zeros
from distconv.transfer import compare_pairs as comparing
from distconv.transfer import engine
from distconv.transfer import lower as lowering
from distconv.transfer.compare_pairs import compare_pairs
from distconv.transfer.means import Means
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from tests.unit.buffers import small_buffers

ROWS, COLUMNS = 70, 90
IO = InputOutput()


class Files:
    """Arrays that are stored, each in a file of its own, behind some other bytes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def stored(self, name: str, array: np.ndarray, dtype: str = "float32") -> StoredTensor:
        path = self._directory / name
        path.write_bytes(b"header" + array.tobytes())
        return StoredTensor(name, dtype, array.shape, SourceFile(str(path), path.stat().st_size), 6)

    def whole(self, name: str, array: np.ndarray, dtype: str = "float32") -> Assembled:
        return Assembled((self.stored(name, array, dtype),), whole(dtype, array.shape))


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def numbers() -> np.ndarray:
    return np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)


def compared(parts: list[PairPart], buffer_bytes: int = 4096, done: list[int] | None = None) -> dict[int, Difference]:
    counters = Counters((lambda _: None) if done is None else done.append)
    with SourceFiles() as sources:
        buffers = small_buffers(3, buffer_bytes)
        means = Means(io=IO, counters=counters, sources=sources, buffers=buffers, must_stop=lambda: False)
        return compare_pairs(parts, means)


def cut(files: Files, changed: np.ndarray) -> Assembled:
    """The same as three pieces: turned columns, and rows."""
    left = files.stored("left", changed[:, :40].T.copy())
    upper, lower = files.stored("upper", changed[:30, 40:].copy()), files.stored("lower", changed[30:, 40:].copy())
    rows = concat([whole("float32", (30, 50), 1), whole("float32", (40, 50), 2)])
    table = concat([permute(whole("float32", (40, ROWS), 0), (1, 0)), rows], dim=1)
    return Assembled((left, upper, lower), table)


def test_threads_that_make_one_block_keep_it_in_one_place(files):
    def slowly(data: memoryview, left: int) -> comparing._Made:
        time.sleep(0.002)
        return made(data, left)

    made, changed, at = comparing._Made, numbers(), 41 * COLUMNS + 60
    changed[41, 60] -= 7
    pair = Pair("w", files.whole("whole", numbers()), files.whole("changed", changed))
    runs, pieces = patch.object(lowering, "MIN_RUN_BYTES", 1), patch.object(engine, "_RUN_PIECE", 64)
    with patch.object(comparing, "_Made", slowly), runs, pieces:
        found = compared(list(parts_of([pair], 10**9)), 4096)
    assert found == {0: Difference(1, at, Farthest(7.0, at, (float(at), at - 7.0)))}


@pytest.mark.parametrize("buffer_bytes", [64, 4096, 10**6])
@pytest.mark.parametrize("part_bytes", [1000, 10**9])
def test_a_change_is_found_where_it_is(buffer_bytes, part_bytes, files):
    changed = numbers()
    changed[3, 2] += 1
    changed[41, 60] -= 7
    changed[69, 89] += 7
    pair = Pair("w", files.whole("whole", numbers()), cut(files, changed))
    done: list[int] = []
    found = compared(list(parts_of([pair], part_bytes)), buffer_bytes, done)
    at = 41 * COLUMNS + 60
    assert found == {0: Difference(3, 3 * COLUMNS + 2, Farthest(7.0, at, (float(at), at - 7.0)))}
    assert sum(done) == pair.nbytes


def test_equal_tensors_have_no_difference(files):
    pairs = [Pair("w", files.whole("whole", numbers()), cut(files, numbers()))]
    assert compared(list(parts_of(pairs, 10**9))) == {}


def test_differences_have_the_numbers_of_their_pairs(files):
    one, other = files.whole("one", numbers()), files.whole("other", numbers() + 1)
    pairs = [Pair("a", one, one), Pair("b", one, other), Pair("c", other, other), Pair("d", other, one)]
    found = compared(list(parts_of(pairs, 5000)))
    assert {number: each.elements for number, each in found.items()} == {1: ROWS * COLUMNS, 3: ROWS * COLUMNS}


def test_another_type_is_widened(files):
    halves = np.arange(200, dtype=np.float16).reshape(2, 100)
    wide = halves.astype(np.float32)
    wide[1, 5] += 2**-20
    stored = files.stored("halves", halves, "float16")
    pair = Pair("w", Assembled((stored,), whole("float32", (2, 100))), files.whole("wide", wide))
    # Beside 105 that is less than the type can tell: nothing was changed.
    assert compared(list(parts_of([pair], 10**9))) == {}
    wide[1, 5] = 105.5
    pair = Pair("w", pair.one, files.whole("wide", wide))
    found = compared(list(parts_of([pair], 10**9)))
    assert found == {0: Difference(1, 105, Farthest(0.5, 105, (105.0, 105.5)))}


def test_what_has_no_source_is_zeros(files):
    pair = Pair("w", Assembled((), zeros("float32", (3, 4))), files.whole("w", np.eye(3, 4, dtype=np.float32)))
    assert compared(list(parts_of([pair], 10**9))) == {0: Difference(3, 0, Farthest(1.0, 0, (0.0, 1.0)))}


def test_a_share_is_compared_and_nothing_else(files):
    one, other = files.whole("one", numbers()), files.whole("other", numbers() + 1)
    parts = list(parts_of([Pair("w", one, other)], 1000))
    found = compared(parts[2:4])
    assert found[0].elements == sum(part.nbytes // 8 for part in parts[2:4])
    assert found[0].first == parts[2].position


def test_blocks_are_planned_some_at_a_time(files, monkeypatch):
    monkeypatch.setattr(comparing, "_PLANNED", 3)
    one, other = files.whole("one", numbers()), files.whole("other", numbers() + 1)
    found = compared(list(parts_of([Pair("w", one, other)], 1000)), 256)
    assert found == {0: Difference(ROWS * COLUMNS, 0, Farthest(1.0, 0, (0.0, 1.0)))}
