"""A file that is created is one that torch loads as its own, with the tensors at the offsets that were returned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.frame import write_frame
from distconv.formats.torch_zip.archive import read_archive
from distconv.formats.torch_zip.create import dictionaries_frame, tensor_frame, value_frame
from distconv.tensors.dtypes import ITEM_SIZE

Tensors = list[tuple[str, str, str, tuple[int, ...]]]

KEYS = ["model0", "model1", "model2"]
EXTRA = {"checkpoint_version": 3.0, "iteration": 1 << 40, "args": {"names": ["a", None, True], "shape": (1, 2)}}
TENSORS: Tensors = [
    ("model0", "a.weight", "bfloat16", (3, 5)),
    ("model0", "a.bias", "float32", (7,)),
    ("model1", "a.weight", "int64", ()),
    ("model1", "none", "uint8", (0, 4)),
]
LOADS = [{"weights_only": False}, {"weights_only": True}, {"weights_only": True, "mmap": True}]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def drawn(draw: st.DrawFn) -> Tensors:
    places = draw(st.lists(st.tuples(st.sampled_from(KEYS), st.text(max_size=3)), unique=True, max_size=12))
    return [(*place, draw(st.sampled_from(sorted(ITEM_SIZE))), draw(SHAPES)) for place in places]


def value_of(number: int, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor whose bytes are like no other's nearby; those of bool are 0 and 1."""
    count = torch.Size(shape).numel() * ITEM_SIZE[dtype]
    data = (torch.arange(count) * 7 + number) % (2 if dtype == "bool" else 251)
    return data.to(torch.uint8).view(getattr(torch, dtype)).reshape(shape)


def data_of(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def create(path: Path, keys: list[str], tensors: Tensors, extra: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Write a file without its data; where that belongs."""
    frame, offsets = dictionaries_frame(keys, tensors, extra)
    write_frame(path, frame)
    return offsets


def fill(path: Path, offsets: dict[tuple[str, str], int], tensors: Tensors) -> dict[str, Any]:
    """Write values to the offsets; what the file should hold then."""
    content: dict[str, Any] = {key: {} for key in KEYS}
    with path.open("r+b") as stream:
        for number, (key, name, *form) in enumerate(tensors):
            content[key][name] = value_of(number, *form)
            stream.seek(offsets[key, name])
            stream.write(data_of(content[key][name]))
    return {**content, **EXTRA}


def described(value: Any) -> Any:
    """A tensor by all that two of them can differ in; dictionaries with their order."""
    if isinstance(value, dict):
        return [(key, described(item)) for key, item in value.items()]
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage()
    layout = value.storage_offset(), tuple(value.shape), value.stride(), value.requires_grad, value.device
    return value.dtype, *layout, bytes(storage.tolist()), value._backward_hooks or None


@given(drawn())
def test_torch_loads_what_it_loads_from_a_file_of_its_own(tmp_path_factory, tensors):
    directory = tmp_path_factory.mktemp("pt")
    offsets = create(directory / "ours.pt", KEYS, tensors, EXTRA)
    torch.save(fill(directory / "ours.pt", offsets, tensors), directory / "its.pt")
    for options in LOADS:
        found, expected = (torch.load(directory / name, **options) for name in ("ours.pt", "its.pt"))
        assert described(found) == described(expected)


@given(drawn())
def test_torch_can_compute_where_the_tensors_are(tmp_path_factory, tensors):
    """Instead of reading it from the file; torch compares the two."""
    config = pytest.importorskip("torch.utils.serialization").config
    path = tmp_path_factory.mktemp("pt") / "file.pt"
    content = fill(path, create(path, KEYS, tensors, EXTRA), tensors)
    with pytest.MonkeyPatch.context() as patch, config.patch("load.calculate_storage_offsets", True):
        patch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
        assert described(torch.load(path, weights_only=True, mmap=True)) == described(content)


@given(drawn())
def test_the_reader_finds_the_tensors_where_it_was_said(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("pt") / "file.pt"
    offsets = create(path, KEYS, tensors, EXTRA)
    found = read_archive(path)
    assert [*found] == [*KEYS, *EXTRA]
    assert {key: found[key] for key in EXTRA} == EXTRA
    located = {(key, name): found[key][name] for key, name, _, _ in tensors}
    assert {place: tensor.offset for place, tensor in located.items()} == offsets
    for key, name, dtype, shape in tensors:
        assert (located[key, name].dtype, located[key, name].shape) == (dtype, shape)
        assert offsets[key, name] % 64 == 0


@given(drawn())
def test_the_same_tensors_are_the_same_bytes(tmp_path_factory, tensors):
    """Even if one process shares objects, such as names, that another one has twice."""
    directory = tmp_path_factory.mktemp("pt")
    copies = [("".join(key), "".join(name), "".join(dtype), (*shape,)) for key, name, dtype, shape in tensors]
    assert create(directory / "a", KEYS, tensors, EXTRA) == create(directory / "b", KEYS, copies, EXTRA)
    assert (directory / "a").read_bytes() == (directory / "b").read_bytes()


@pytest.mark.parametrize("options", LOADS)
def test_a_tensor_or_a_value_can_be_all_that_an_archive_holds(tmp_path, options):
    path = tmp_path / "file"
    frame = tensor_frame("float8_e5m2", (2, 3))
    write_frame(path, frame)
    expected = value_of(1, "float8_e5m2", (2, 3))
    with path.open("r+b") as stream:
        stream.seek(*frame.holes)
        stream.write(data_of(expected))
    assert described(torch.load(path, **options)) == described(expected)
    write_frame(path, value_frame(3.5))
    assert torch.load(path, **options) == 3.5


def test_a_file_of_more_than_4_gib(tmp_path):
    """Tensors beyond the first 4 GiB, and one of more than that; all holes but what is written here."""
    path = tmp_path / "file.pt"
    tensors: Tensors = [("model", "large", "int8", (5 << 30,)), ("model", "last", "int16", (3,))]
    offsets = create(path, ["model"], tensors, {})
    with path.open("r+b") as stream:
        for place, data in (
            (offsets["model", "large"] + (5 << 30) - 1, b"\7"),
            (offsets["model", "last"], b"\1\0" * 3),
        ):
            stream.seek(place)
            stream.write(data)
    loaded = torch.load(path, weights_only=True, mmap=True)["model"]
    assert (loaded["large"].shape, loaded["large"][-1].item()) == ((5 << 30,), 7)
    assert loaded["last"].tolist() == [1, 1, 1]
    found = read_archive(path)["model"]
    assert {name: tensor.offset for name, tensor in found.items()} == {name: offsets["model", name] for name in found}
    assert path.stat().st_blocks * 512 < 1 << 20


def test_more_tensors_than_16_bits_count(tmp_path):
    path = tmp_path / "file.pt"
    tensors: Tensors = [("model", str(number), "uint8", (1,)) for number in range((1 << 16) + 1)]
    offsets = create(path, ["model"], tensors, {})
    with path.open("r+b") as stream:
        stream.seek(offsets["model", str(1 << 16)])
        stream.write(b"\7")
    loaded = torch.load(path, weights_only=True, mmap=True)["model"]
    assert len(loaded) == len(tensors)
    assert loaded[str(1 << 16)].item() == 7


def test_data_is_a_hole_and_takes_no_memory(tmp_path):
    path = tmp_path / "file.pt"
    create(path, ["model"], [("model", str(number), "float64", (1 << 40,)) for number in range(1)], {})
    found = path.stat()
    assert found.st_size > 8 << 40
    assert found.st_blocks * 512 < 1 << 20


def test_torch_is_not_needed(tmp_path):
    code = f"""
import pathlib, sys
from distconv.formats.frame import write_frame
from distconv.formats.torch_zip.create import dictionaries_frame
write_frame(pathlib.Path("file.pt"), dictionaries_frame({KEYS!r}, {TENSORS!r}, {EXTRA!r})[0])
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(Path(__file__).parents[4])}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"
    assert torch.load(tmp_path / "file.pt", weights_only=True)["iteration"] == 1 << 40
