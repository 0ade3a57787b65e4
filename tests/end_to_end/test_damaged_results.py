"""Verification finds whatever byte of a result is not as it was written, and tells what was added."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from distconv.formats import registry
from distconv.formats.frame import Frame, first_difference
from distconv.observer import Outcome
from tests.checkpoints import forget, load_case, write_source
from tests.here import outcome_here, run_here
from tests.npy_format import Npy

JOBS: dict[str, dict[str, Any]] = {
    "megatron": {"layout__tp": 2, "layout__pp": 2},
    "dcp": {"target_format": "dcp"},
    "hf": {"target_format": "hf"},
    "npy": {"target_format": "npy"},
}
FLIPS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a Hugging Face directory, and a result in each format; one of each kind of source."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FORMATS", (*registry.FORMATS, Npy()))
        directory = tmp_path_factory.mktemp("damaged")
        write_source(directory / "model", load_case("qwen2vl__tp1_pp1"))
        for name in JOBS:
            run_here(**job(directory, name))
        yield directory


@pytest.fixture
def undamaged(made: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The same; the result of the format that the test names is put back afterwards."""
    (name,) = (value for key, value in request.node.callspec.params.items() if key == "name")
    shutil.copytree(made / name, made / "kept")
    yield made
    shutil.rmtree(made / name)
    (made / "kept").rename(made / name)


def job(directory: Path, name: str) -> dict[str, Any]:
    source = "dcp" if name == "hf" else "model"
    return {"source": str(directory / source), "target": str(directory / name), **JOBS[name]}


def verified(directory: Path, name: str) -> Outcome:
    return outcome_here(**job(directory, name), action="verify")


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 1 << bit]))


def frames(directory: Path, name: str) -> dict[Path, Frame]:
    """What verification compares byte by byte: the frames of all files, tracker and record apart."""
    found = {}

    def compare(path: Path, frame: Frame) -> int | None:
        found[path] = frame
        return first_difference(path, frame)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("verify", "surroundings"):
            patch.setattr(f"distconv.transfer.{module}.first_difference", compare)
        outcome = verified(directory, name)
    assert (outcome.differences, outcome.notes) == ([], [])
    return found


@pytest.mark.parametrize("name", JOBS)
def test_all_files_are_compared_and_a_file_is_its_frame_and_its_tensors(made, name):
    found = frames(made, name)
    apart = {made / name / "latest_checkpointed_iteration.txt", *(made / name).rglob("distconv.json")}
    assert found.keys() | apart == {path for path in (made / name).rglob("*") if path.is_file()} | apart
    for path, frame in found.items():
        assert path.stat().st_size == frame.nbytes
        gaps = [end for end, _ in frame.pieces[1:]] + [frame.nbytes]
        ends = [offset + len(data) for offset, data in frame.pieces]
        assert set(frame.holes) <= {*range(frame.nbytes + 1)}
        assert all(any(end <= hole <= gap for end, gap in zip(ends, gaps, strict=True)) for hole in frame.holes)


@pytest.mark.parametrize("name", JOBS)
def test_a_flip_of_any_byte_is_found(undamaged, name):
    chance = random.Random(name)  # noqa: S311 - the same flips every time
    found = frames(undamaged, name)
    places = [
        (path, offset + at) for path, frame in found.items() for offset, data in frame.pieces for at in range(len(data))
    ]
    data = [(path, chance.randrange(frame.nbytes)) for path, frame in found.items() if frame.nbytes]
    for path, at in chance.sample(places, FLIPS) + chance.sample(data, min(5, len(data))):
        bit = chance.randrange(8)
        flip(path, at, bit)
        differences = verified(undamaged, name).differences
        assert any(str(path) in line for line in differences), (path, at, bit, differences)
        flip(path, at, bit)
    assert verified(undamaged, name).differences == []


@pytest.mark.parametrize("name", ["megatron", "dcp"])
def test_the_tracker_is_compared(undamaged, name):
    tracker = undamaged / name / "latest_checkpointed_iteration.txt"
    for content in (b"releas\xe5", b"release\n", b"RELEASE", b"", b"100"):
        tracker.write_bytes(content)
        (line,) = verified(undamaged, name).differences
        assert line.startswith(f"{tracker}: expected 'release', found ")
    tracker.unlink()
    (line,) = verified(undamaged, name).differences
    assert line == f"{tracker}: expected 'release', cannot be read: No such file or directory"


def directory(path: Path) -> None:
    path.mkdir()


def copy_of(name: str) -> Callable[[Path], None]:
    return lambda path: shutil.copyfile(path.parent / name, path) and None


ADDED: list[tuple[str, str, Callable[[Path], object], bool]] = [
    ("megatron", "iter_0000100", directory, False),
    ("megatron", "release/mine.py", Path.touch, False),
    ("megatron", "release/mp_rank_00_000/notes.txt", Path.touch, False),
    ("megatron", "wandb", directory, False),
    ("megatron", "release/mp_rank_00_002", directory, True),
    ("megatron", "release/mp_rank_02", directory, True),
    ("megatron", "mp_rank_00", directory, True),
    ("megatron", "release/.metadata", Path.touch, True),
    ("megatron", "release/mp_rank_00_000/model_rng.pt", Path.touch, True),
    ("dcp", "iter_0000100", directory, False),
    ("dcp", "release/mine.py", Path.touch, False),
    ("dcp", "release/__0.metadata", copy_of(".metadata"), True),
    ("dcp", "release/__7_0.distcp", copy_of("__0_0.distcp"), True),
    ("dcp", "release/mp_rank_00", directory, True),
    ("dcp", ".metadata", Path.touch, True),
    ("hf", "modeling_mine.py", Path.touch, False),
    ("hf", "checkpoint-5", directory, False),
    ("hf", "pytorch_model.bin", Path.touch, True),
    ("hf", "model-00007-of-00007.safetensors", Path.touch, True),
    ("npy", "more.npy", Path.touch, True),
    ("npy", "more.txt", Path.touch, False),
]


@pytest.mark.parametrize(("name", "added", "make", "taken"), ADDED, ids=[f"{name}-{path}" for name, path, *_ in ADDED])
def test_what_was_added_is_named_or_a_difference(undamaged, name, added, make, taken):
    make(undamaged / name / added)
    outcome = verified(undamaged, name)
    if taken:
        (line,) = outcome.differences
        assert line.startswith(f"{undamaged / name / added}: is not expected")
        assert outcome.notes == []
    else:
        assert outcome.differences == []
        (note,) = outcome.notes
        assert "holds more than belongs to the result: " in note
        assert added.endswith(note.rsplit(": ", 1)[1])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["megatron", "dcp"])
def test_a_result_of_an_earlier_version_is_compared_by_its_tensors(undamaged, name):
    """Those were written through `torch.save`, as is what is saved again."""
    files = sorted((undamaged / name).rglob("*.pt" if name == "megatron" else "*.distcp"))
    if name == "megatron":
        for path in files:
            torch.save(torch.load(path, weights_only=True), path)
    else:
        save_again(undamaged / name / "release")
    forget(undamaged / name)
    outcome = verified(undamaged, name)
    assert outcome.differences == []
    *notes, of_record = sorted(outcome.notes, key=lambda note: "distconv.json" in note)
    assert of_record.endswith("distconv.json: was written by an earlier version, and names no files")
    assert len(notes) == len(files) + (name == "dcp")
    assert all("was written by torch" in note for note in notes)
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2] + b"\x55" * 64 + content[len(content) // 2 + 64 :])
    assert verified(undamaged, name).differences != []


def save_again(release: Path) -> None:
    """Save a DCP of one file with torch, in the same chunks."""
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415 - it takes a second

    metadata = FileSystemReader(release).read_metadata()
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if name != "checkpoint_version"
    }
    dcp.load(state, checkpoint_id=release, no_dist=True)
    record = (release / "distconv.json").read_bytes()
    shutil.rmtree(release)
    dcp.save({**state, "checkpoint_version": 3.0}, checkpoint_id=release, no_dist=True)
    (release / "distconv.json").write_bytes(record)
