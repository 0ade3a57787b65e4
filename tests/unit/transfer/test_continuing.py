"""Of what an earlier job had finished, what is still as its writers left it is kept, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import pytest

from distconv.commit.journal import Finished
from distconv.errors import StoppedError
from distconv.formats.records import OutputFile, Written
from distconv.input_output import InputOutput
from distconv.transfer import continuing
from distconv.transfer.continuing import proved
from distconv.transfer.means import Means
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles
from tests.unit.buffers import small_buffers

CONTENT = {"a/x": b"first file", "a/y": b"", "b/z": bytes(3 * 2**20)}


def finished(directory: Path, **how: Any) -> dict[str, Finished]:
    """What is there, as its writers noted it."""
    for path, content in CONTENT.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_bytes(content)
    return {
        path: Finished(written=Written(len(content), crc32(content)), durable=True, **how)
        for path, content in CONTENT.items()
    }


def means(sources: SourceFiles, **changes: Any) -> Means:
    io = InputOutput(**{key: changes.pop(key) for key in ("fsync", "checksum") if key in changes})
    given = {"counters": Counters(lambda _: None), "buffers": small_buffers(2), "must_stop": lambda: False, **changes}
    return Means(io=io, sources=sources, **given)


def kept(directory: Path, known: Mapping[str, Finished], **changes: Any) -> dict[str, Written]:
    files = [OutputFile(path=path, nbytes=len(CONTENT[path]), order=(0,), batch=0) for path in known]
    with SourceFiles() as sources:
        return proved(directory, known, files, means(sources, **changes))


def test_what_is_as_it_was_is_kept(tmp_path):
    known = finished(tmp_path)
    assert kept(tmp_path, known) == {path: each.written for path, each in known.items()}


@pytest.mark.parametrize(
    "content", [b"first filf", b"first fil", b"first file ", None], ids=["changed", "shorter", "longer", "missing"]
)
def test_what_is_not_as_it_was_is_made_again(tmp_path, content):
    known = finished(tmp_path)
    if content is None:
        (tmp_path / "a" / "x").unlink()
    else:
        (tmp_path / "a" / "x").write_bytes(content)
    assert kept(tmp_path, known).keys() == {"a/y", "b/z"}


def test_one_without_a_checksum_is_kept_by_its_size_where_none_is_wanted(tmp_path):
    known = {
        path: replace(each, written=Written(each.written.nbytes, None)) for path, each in finished(tmp_path).items()
    }
    assert kept(tmp_path, known) == {}
    assert kept(tmp_path, known, checksum=False) == {path: each.written for path, each in known.items()}
    (tmp_path / "a" / "x").write_bytes(b"longer than before")
    assert kept(tmp_path, known, checksum=False).keys() == {"a/y", "b/z"}


def test_a_result_without_checksums_gets_none_of_an_earlier_job(tmp_path):
    known = finished(tmp_path)
    assert {each.checksum for each in kept(tmp_path, known, checksum=False).values()} == {None}


@pytest.mark.parametrize(("durable", "fsync"), [(False, True), (True, True), (False, False)])
def test_what_was_not_durable_is_made_so_where_that_is_wanted(tmp_path, durable, fsync):
    known = {path: replace(each, durable=durable) for path, each in finished(tmp_path).items()}
    made: list[str] = []
    with patch.object(continuing, "synchronise", lambda files: made.extend(path for path, _ in files)):
        kept(tmp_path, known, fsync=fsync)
    assert sorted(made) == (sorted(str(tmp_path / path) for path in CONTENT) if fsync and not durable else [])


def test_what_casts_made_infinite_is_counted_for_what_is_kept(tmp_path):
    known = finished(tmp_path)
    known["a/x"] = replace(known["a/x"], overflowed={"float16": {"a/x: w": 3}})
    known["b/z"] = replace(known["b/z"], overflowed={"float16": {"b/z: w": 5}})
    (tmp_path / "b" / "z").write_bytes(b"")
    files = [OutputFile(path=path, nbytes=1, order=(0,), batch=0) for path in known]
    with SourceFiles() as sources:
        used = means(sources)
        proved(tmp_path, known, files, used)
    assert used.counters.overflowed == {"float16": {"a/x: w": 3}}


def test_a_process_whose_others_failed_stops(tmp_path):
    with pytest.raises(StoppedError):
        kept(tmp_path, finished(tmp_path), must_stop=lambda: True)
