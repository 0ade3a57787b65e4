"""A result is compared with its record by size and checksum; a record that says something else is a difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest

from distconv.errors import StoppedError
from distconv.formats.provenance import Provenance, provenance_bytes
from distconv.formats.records import Written
from distconv.input_output import InputOutput
from distconv.models.scaling import Scaling
from distconv.transfer.means import Means
from distconv.transfer.recorded import as_outputs, compare_record, compare_recorded
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from tests.unit.buffers import small_buffers

CONTENT = {"a": b"abcd", "b/c": b"x" * 3_000_000, "empty": b""}
FILES = {name: Written(len(data), crc32(data)) for name, data in CONTENT.items()}
EXPECTED = Provenance(
    model="toy",
    reference="/hf",
    version="9",
    source={"path": "/hf", "format": "hf"},
    format="megatron",
    dialect="mcore_te",
    layout={"tp": 2},
    options={"layout": {"tp": 2}},
    files=FILES,
)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    for name, data in CONTENT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def compared(directory: Path, files: dict[str, Written], *, stop: bool = False) -> tuple[list[str], list[int], int]:
    """The differences, without the directory; the portions of progress; the bytes that were read."""
    told: list[int] = []
    with SourceFiles() as sources:
        counters = Counters(told.append)
        means = Means(
            io=InputOutput(), counters=counters, sources=sources, buffers=small_buffers(2), must_stop=lambda: stop
        )
        found = compare_recorded(directory, files, as_outputs(files), means)
    return [line.replace(f"{directory}/", "") for line in found], told, counters.read


def test_a_result_as_it_was_written(result):
    found, told, read = compared(result, FILES)
    assert (found, sum(told), read) == ([], 3_000_004, 3_000_004)
    # Large files are told of in portions.
    assert max(told) < 2_000_000


def test_every_difference_is_named_and_progress_is_complete(result):
    (result / "a").write_bytes(b"abCd")
    (result / "b" / "c").write_bytes(b"x")
    (result / "empty").unlink()
    found, told, _ = compared(result, FILES)
    assert found == [
        f"a: has the checksum {crc32(b'abCd'):08x}, its record says {crc32(b'abcd'):08x}",
        "b/c: is 1 bytes long, its record says 3,000,000",
        "empty: cannot be compared with its record: No such file or directory",
    ]
    assert sum(told) == 3_000_004


def test_a_directory_in_the_place_of_a_file(result):
    (result / "a").unlink()
    (result / "a").mkdir()
    assert compared(result, FILES)[0] == ["a: cannot be compared with its record: Is a directory"]


def test_without_checksums_nothing_is_read(result):
    (result / "a").write_bytes(b"abCd")
    found, told, read = compared(result, {name: each._replace(checksum=None) for name, each in FILES.items()})
    assert (found, sum(told), read) == ([], 3_000_004, 0)


def test_another_process_that_failed_ends_it(result):
    with pytest.raises(StoppedError):
        compared(result, FILES, stop=True)


def by_record(directory: Path, written: Provenance, expected: Provenance = EXPECTED) -> tuple[list[str], list[str]]:
    """The differences and the notes of a result with this record."""
    (directory / "distconv.json").write_bytes(provenance_bytes(written))
    found, files = compare_record(directory, expected)
    assert files == written.files
    return tuple([line.removeprefix(f"{directory}/distconv.json: ") for line in each] for each in vars(found).values())


def test_the_same_record(tmp_path):
    assert by_record(tmp_path, EXPECTED) == ([], [])


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": "other"}, "says model other, expected toy"),
        ({"model": None}, "says model none, expected toy"),
        ({"reference": "/other"}, "says reference /other, expected /hf"),
        ({"format": "dcp"}, "says format dcp, expected megatron"),
        ({"dialect": "bridge"}, "says dialect bridge, expected mcore_te"),
        ({"layout": {"tp": 4}}, "says layout tp=4, expected tp=2"),
        ({"scaling": Scaling(alpha=1)}, "says another scaling of adapters than they have"),
        ({"files": {**FILES, "z": Written(1, 1)}}, "names files that are not of the result: z"),
        ({"files": {"a": FILES["a"]}}, "does not name files of the result: b/c, empty"),
    ],
)
def test_another_word_on_the_result_is_a_difference(tmp_path, change, difference):
    assert by_record(tmp_path, replace(EXPECTED, **change)) == ([difference], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "8"}, "version 8"),
        ({"source": {"path": "/moved", "format": "hf"}}, "source format=hf path=/moved"),
        ({"options": {}}, "options none"),
    ],
)
def test_another_way_to_the_same_result_is_a_note(tmp_path, change, words):
    expected = [f"says that it was made otherwise, with {words}"]
    assert by_record(tmp_path, replace(EXPECTED, **change)) == ([], expected)


def test_the_same_scaling_from_another_file(tmp_path):
    scaling = Scaling(alpha=1, where="/peft/adapter_config.json")
    expected = replace(EXPECTED, scaling=scaling)
    assert by_record(tmp_path, expected, expected) == ([], [])
    other = replace(EXPECTED, scaling=replace(scaling, alpha=2))
    assert by_record(tmp_path, other, expected)[0] == ["says another scaling of adapters than they have"]


def test_a_record_that_is_missing_damaged_or_of_another_version(tmp_path):
    path = tmp_path / "distconv.json"
    found, _ = compare_record(tmp_path, EXPECTED)
    assert found.differences == [f"{path}: is missing; if it was left out on purpose, give provenance=false"]
    path.write_text("{")
    found, _ = compare_record(tmp_path, EXPECTED)
    assert found.differences[0].startswith(f"{path}: not valid JSON")
    path.write_text('{"record": 7}')
    found, files = compare_record(tmp_path, EXPECTED)
    assert (found.differences, len(found.notes), files) == ([], 1, {})
    path.write_text('{"model": "toy", "reference": "/hf"}')
    found, files = compare_record(tmp_path, EXPECTED)
    assert found.notes == [f"{path}: was written by an earlier version, and names no files"]
    assert (found.differences, files) == ([], {})
    path.write_text('{"model": "other", "reference": "/hf"}')
    found, _ = compare_record(tmp_path, EXPECTED)
    assert found.differences == [f"{path}: says model other, expected toy"]
