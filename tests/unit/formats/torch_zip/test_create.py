"""A file that was laid out is one that torch loads, whose tensors are where it was said. Torch reads the files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from distconv.formats.torch_zip.create import lay_out

TENSORS = [
    ("model0", "a.weight", "bfloat16", (3, 5)),
    ("model0", "a.bias", "float32", (7,)),
    ("model1", "a.weight", "int64", ()),
    ("model1", "none", "uint8", (0, 4)),
]


def test_bytes_that_are_written_at_the_offsets_are_the_tensors(tmp_path):
    path = tmp_path / "file.pt"
    offsets = lay_out(path, ["model0", "model1", "model2"], TENSORS, {"checkpoint_version": 3.0})
    assert set(offsets) == {(key, name) for key, name, _, _ in TENSORS}
    given = {}
    with path.open("r+b") as stream:
        for number, (key, name, dtype, shape) in enumerate(TENSORS):
            given[key, name] = torch.arange(100 * number, 100 * number + 100).to(getattr(torch, dtype))
            given[key, name] = given[key, name][: torch.Size(shape).numel()].reshape(shape).clone()
            stream.seek(offsets[key, name])
            stream.write(given[key, name].reshape(-1).view(torch.uint8).numpy().tobytes())
    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == ["model0", "model1", "model2", "checkpoint_version"]
    assert loaded["checkpoint_version"] == 3.0
    assert loaded["model2"] == {}
    for (key, name), tensor in given.items():
        assert loaded[key][name].dtype == tensor.dtype
        assert torch.equal(loaded[key][name], tensor)
    assert sum(map(len, (loaded["model0"], loaded["model1"]))) == len(TENSORS)


def test_data_is_a_hole_and_every_tensor_has_its_own(tmp_path):
    path = tmp_path / "file.pt"
    offsets = lay_out(path, ["model"], [("model", str(number), "uint8", (1 << 22,)) for number in range(4)], {})
    places = sorted(offsets.values())
    assert all(after - before >= 1 << 22 for before, after in pairwise(places))
    found = path.stat()
    assert found.st_size > 4 << 22
    assert found.st_blocks * 512 < 1 << 22


def test_a_file_that_cannot_be_made_says_what_the_system_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        lay_out(tmp_path / "none" / "file.pt", ["model0"], TENSORS[:1], {})
    with pytest.raises(OSError, match="No space left on device"):
        lay_out(Path("/dev/full"), ["model0"], TENSORS[:1], {})
