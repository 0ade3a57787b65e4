"""What a reader gives is compared with the source, and let go; everything that differs is named. No file is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from distconv.errors import ReaderError
from distconv.formats.megatron.plan import MegatronPlan
from distconv.formats.readers import Form, Key, Reader, ReadFile
from distconv.formats.records import Entry, OutputFile
from distconv.input_output import InputOutput
from distconv.planning.assign import assign_parts
from distconv.tensors.virtual import VirtualTensor
from distconv.transfer import lower as lowering
from distconv.transfer import read_back as reading
from distconv.transfer.means import Means
from distconv.transfer.read_back import read_back, read_beside
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from tests.unit.buffers import small_buffers
from tests.unit.toy_files import expected, planned

QKV = ("model", "text.layers.0.qkv.weight")
NORM = "text.layers.0.norm.weight"
FILE = "mp_rank_01/model_optim_rng.pt"


class Memory(Reader):
    """The right files, and changes of them: tensors by file, forms and data by key, and errors."""

    name = "memory"

    def __init__(self, plan: MegatronPlan) -> None:
        self._plan = plan
        self.forms: dict[Key, Form | None] = {}
        self.data: dict[Key, bytes | ReaderError] = {}
        self.closed: set[str] = set()
        self.is_mapped = False
        self.said: list[str] = []
        self.asked: list[tuple[str, Key]] = []

    def open(self, directory: Path, file: OutputFile) -> ReadFile:
        if file.path in self.closed:
            raise ReaderError(f"{directory / file.path}: cannot be read")
        content, start = expected(self._plan, file.path), 0
        forms: dict[Key, Form] = {}
        held: dict[Key, bytes] = {}
        for entry in self._plan.entries(file):
            key = entry.key, entry.name
            forms[key] = entry.tensor.dtype, entry.shape
            held[key], start = content[start : start + entry.nbytes], start + entry.nbytes
        if file.path == FILE:
            forms = {key: form for key, form in {**forms, **self.forms}.items() if form is not None}

        def data(key: Key) -> memoryview:
            self.asked.append((file.path, key))
            # A thread that compares another part of the tensor comes meanwhile.
            time.sleep(0.001)
            given = self.data[key] if file.path == FILE and key in self.data else held[key]
            if isinstance(given, ReaderError):
                raise given
            return memoryview(given)

        return ReadFile(
            forms=forms, data=data, is_mapped=self.is_mapped, differences=self.said if file.path == FILE else ()
        )

    def right(self, key: Key) -> bytes:
        """The data of a tensor of the file that is changed."""
        (file,) = (each for each in self._plan.files if each.path == FILE)
        return bytes(self.open(Path(), file).data(key))


@pytest.fixture
def plan(tmp_path: Path) -> MegatronPlan:
    return planned(tmp_path, tp=2)


@pytest.fixture
def memory(plan: MegatronPlan) -> Memory:
    return Memory(plan)


def found(plan: MegatronPlan, reader: Reader, files: Sequence[OutputFile] | None = None, **changes: Any) -> list[str]:
    files = plan.files if files is None else files
    portions: list[int] = []
    counters = Counters(portions.append)
    io, buffers = InputOutput(fsync=False), small_buffers(2, **changes)
    with SourceFiles() as sources:
        means = Means(io=io, counters=counters, sources=sources, buffers=buffers, must_stop=lambda: False)
        lines = read_back(plan, files, Path("staged"), reader, means)
    assert sum(portions) == sum(file.nbytes for file in files)
    assert counters.written == 0
    return [line.replace("staged/", "") for line in lines]


@pytest.mark.parametrize("run_bytes", [1, 64 * 1024])
@pytest.mark.parametrize("buffer_bytes", [128, 4096])
@pytest.mark.parametrize("piece", [100, 2**20])
def test_a_right_result(run_bytes, buffer_bytes, piece, plan, memory):
    with patch.object(lowering, "MIN_RUN_BYTES", run_bytes), patch.object(reading, "_PIECE", piece):
        assert found(plan, memory, buffer_bytes=buffer_bytes) == []
    # Each tensor once, however many pieces it is compared in.
    assert len(memory.asked) == len(set(memory.asked)) == sum(len(list(plan.entries(file))) for file in plan.files)


@pytest.mark.parametrize("buffer_bytes", [128, 4096])
@pytest.mark.parametrize("elements", [(0,), (7,), (30, 4), (-1,)])
def test_the_first_other_element_is_told(elements, buffer_bytes, plan, memory):
    data = bytearray(memory.right(QKV))
    count = len(data) // 2
    for element in elements:
        data[2 * element + 1] ^= 0x80
    memory.data[QKV] = bytes(data)
    first = min(element % count for element in elements)
    with patch.object(reading, "_PIECE", 16):
        (line,) = found(plan, memory, buffer_bytes=buffer_bytes)
    said = f"is not what its source says, from element {first} of {count} on, as memory reads it"
    assert line == f"{FILE}: {'/'.join(QKV)} {said}"


def test_what_is_missing_or_added_or_of_another_form(plan, memory):
    (file,) = (each for each in plan.files if each.path == FILE)
    shape = next(entry.shape for entry in plan.entries(file) if entry.name == QKV[1])
    memory.forms = {("model", NORM): None, QKV: ("float16", shape), ("model", "more"): ("int64", ())}
    assert sorted(found(plan, memory)) == [
        f"{FILE}: model/more is not expected",
        f"{FILE}: model/{NORM} is missing",
        f"{FILE}: {'/'.join(QKV)} is float16 {list(shape)}, expected bfloat16 {list(shape)}",
    ]
    assert (FILE, QKV) not in memory.asked


@pytest.mark.parametrize("processes", [3, 5, 40])
def test_processes_find_in_parts_what_one_finds_in_files(processes, plan, memory):
    def in_parts() -> list[list[str]]:
        return [found(plan, memory, share) for share in assign_parts(plan, plan.files, processes, shared=True)]

    assert in_parts() == [[]] * processes
    assert len(memory.asked) == len(set(memory.asked)) == sum(len(list(plan.entries(file))) for file in plan.files)
    memory.forms = {("model", NORM): None, ("model", "more"): ("int64", ())}
    memory.data[QKV] = bytes(len(memory.right(QKV)))
    expected_lines = found(plan, memory)
    told = in_parts()
    assert {line for lines in told for line in lines} == set(expected_lines)
    # Data have one reader.
    assert sum(line.endswith("as memory reads it") for lines in told for line in lines) == 1
    memory.closed = {FILE}
    assert {line for lines in in_parts() for line in lines} == {f"{FILE}: cannot be read"}


def test_what_else_a_reader_finds(plan, memory):
    memory.said = ["checkpoint_version is None"]
    assert found(plan, memory) == [f"{FILE}: checkpoint_version is None"]


def test_a_file_that_a_reader_refuses_does_not_hide_others(plan, memory):
    (other,) = (each.path for each in plan.files if each.path != FILE)
    memory.closed = {other}
    memory.said = ["odd"]
    assert sorted(found(plan, memory)) == sorted([f"{other}: cannot be read", f"{FILE}: odd"])


def test_one_reason_why_tensors_cannot_be_read_is_said_once(plan, memory):
    (file,) = (each for each in plan.files if each.path == FILE)
    keys = [(entry.key, entry.name) for entry in plan.entries(file)]
    memory.data = dict.fromkeys(keys, ReaderError(f"{FILE}: is torn"))
    (line,) = found(plan, memory, buffer_bytes=128)
    assert line.startswith(f"{FILE}: is torn (model/")
    assert line.endswith(f" and {len(keys) - 3} more)")
    assert len([path for path, _ in memory.asked if path == FILE]) == len(keys)


class WithEmpty:
    """A plan, with a tensor without elements after the first of each file."""

    def __init__(self, plan: MegatronPlan) -> None:
        self.files, self._plan = plan.files, plan

    def entries(self, file: OutputFile) -> list[Entry]:
        first, *others = self._plan.entries(file)
        empty = VirtualTensor("bfloat16", (0, 3), ())
        return [first, replace(first, name="empty", tensor=empty, group="empty", sources=()), *others]


def test_tensors_without_elements_are_asked_for(plan, memory):
    """A reader may fail at them, too."""
    memory.forms = {("model", "empty"): ("bfloat16", (0, 3))}
    memory.data = {("model", "empty"): ReaderError("torn")}
    lines = found(WithEmpty(plan), memory)
    (other,) = (each.path for each in plan.files if each.path != FILE)
    assert sorted(lines) == [f"{other}: model/empty is missing", "torn (model/empty)"]


def test_a_tensor_is_let_go_after_its_last_byte(plan, memory, monkeypatch):
    """Else all of a DCP would be in memory at the end."""
    most, ask = 0, reading._Opened._ask

    def asked(opened: Any, number: int) -> Any:
        nonlocal most
        held = ask(opened, number)
        most = max(most, len(opened._held))
        return held

    monkeypatch.setattr(reading._Opened, "_ask", asked)
    assert found(plan, memory, buffer_bytes=128) == []
    # One for each of the two threads.
    assert 1 <= most <= 2


@pytest.mark.parametrize("is_mapped", [True, False])
def test_pages_of_all_that_was_compared_are_given_back(is_mapped, plan, memory, monkeypatch):
    dropped = []
    monkeypatch.setattr(reading.MappedPages, "drop", lambda _, __, nbytes: dropped.append(nbytes))
    memory.is_mapped = is_mapped
    assert found(plan, memory, buffer_bytes=128) == []
    assert sum(dropped) == (sum(file.nbytes for file in plan.files) if is_mapped else 0)


def test_what_is_beside(memory):
    class Refusing(Memory):
        def beside(self, directory: Path) -> list[str]:
            raise ReaderError(f"{directory}/index: no JSON")

    assert read_beside(Path("staged"), memory) == []
    assert read_beside(Path("staged"), Refusing(memory._plan)) == ["staged/index: no JSON"]
