"""A file of blobs: what torch loads from each span, and where the data of the chunks is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from distconv.formats.dcp.blobs import Span, blob_frames, spans_of
from distconv.formats.dcp.plan import Chunk, Value, Whole
from distconv.formats.frame import joined_frames, write_frame
from distconv.formats.torch_zip.blobs import stored_within
from distconv.formats.torch_zip.create import value_frame
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.virtual import whole

FORMS = st.tuples(st.sampled_from(sorted(ITEM_SIZE)), st.lists(st.integers(0, 6), max_size=3).map(tuple))


def chunk(dtype: str, shape: tuple[int, ...]) -> Chunk:
    tensor = whole(dtype, shape)
    return Chunk((), tensor, "all", key="w", group="w", whole=Whole("w", dtype, shape), offsets=(0,) * len(shape))


@dataclass(frozen=True)
class Blobs:
    """Where the blobs of a file are, and the file offsets of the chunks' data."""

    spans: list[Span]
    offsets: Sequence[int]


def create(path: Path, chunks: list[Chunk], *, with_version: bool) -> Blobs:
    """Write a file without its data."""
    version = Value(keys=("version",), frame=value_frame(3.0))
    frames = blob_frames([version] if with_version else [], chunks)
    frame = joined_frames(frames)
    write_frame(path, frame)
    return Blobs(spans_of(frames), frame.holes)


def load(path: Path, span: tuple[int, int]) -> object:
    """What torch loads from a span, as its reader of checkpoints does it."""
    offset, length = span
    return torch.load(io.BytesIO(path.read_bytes()[offset : offset + length]), weights_only=True)


def fill(path: Path, blobs: Blobs, chunks: list[Chunk]) -> list[torch.Tensor]:
    """Write values to the offsets of a file; the values."""
    values = []
    with path.open("r+b") as stream:
        for number, (each, offset) in enumerate(zip(chunks, blobs.offsets, strict=True)):
            size = each.tensor.elements * ITEM_SIZE[each.tensor.dtype]
            data = (torch.arange(size) + number) % (2 if each.tensor.dtype == "bool" else 251)
            stream.seek(offset)
            stream.write(data.to(torch.uint8).numpy().tobytes())
            values.append(data.to(torch.uint8).view(getattr(torch, each.tensor.dtype)).reshape(each.tensor.shape))
    return values


@given(st.lists(FORMS, max_size=8), st.booleans())
def test_torch_loads_what_was_written_to_the_offsets(tmp_path_factory, forms, with_version):
    path = tmp_path_factory.mktemp("dcp") / "__0_0.distcp"
    chunks = [chunk(*form) for form in forms]
    blobs = create(path, chunks, with_version=with_version)
    assert [start for start, _ in blobs.spans] == [
        sum(length for _, length in blobs.spans[:n]) for n in range(len(blobs.spans))
    ]
    assert path.stat().st_size == sum(length for _, length in blobs.spans)
    values = fill(path, blobs, chunks)
    found = [load(path, span) for span in blobs.spans]
    assert found[: len(found) - len(values)] == ([3.0] if with_version else [])
    for tensor, value in zip(found[len(found) - len(values) :], values, strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (
            value.dtype,
            value.shape,
            torch.empty(value.shape).stride(),
        )
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))


@given(st.lists(FORMS, min_size=1, max_size=8))
def test_the_reader_finds_the_data_where_it_was_said(tmp_path_factory, forms):
    path = tmp_path_factory.mktemp("dcp") / "__0_0.distcp"
    blobs = create(path, [chunk(*form) for form in forms], with_version=True)
    with stored_within(path) as read:
        version, *found = [read(*span) for span in blobs.spans]
    assert version == 3.0
    assert [each.offset for each in found] == blobs.offsets
    assert [(each.dtype, each.shape) for each in found] == forms


def test_the_data_is_a_hole(tmp_path):
    path = tmp_path / "__0_0.distcp"
    blobs = create(path, [chunk("float32", (1 << 22,))] * 3, with_version=False)
    assert all((offset - start) % 64 == 0 for offset, (start, _) in zip(blobs.offsets, blobs.spans, strict=True))
    assert path.stat().st_size > 3 * (1 << 24)
    assert path.stat().st_blocks * 512 < 1 << 20
