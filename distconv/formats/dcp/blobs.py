"""The blobs of a DCP result: `torch.save` archives of one tensor or value, concatenated in a file.

Owns the list of blobs of a file. Data is aligned within an archive, as torch does it, never within the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from distconv.formats.dcp.plan import Chunk
from distconv.formats.iterations import CHECKPOINT_VERSION
from distconv.formats.torch_zip.create import tensor_frame, value_frame
from distconv.formats.torch_zip.frame import Frame, write_frames

# A span of bytes in a file: offset and length.
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """The spans of the blobs of a file, the version's first if it has one, and the file offsets of the chunks' data."""

    spans: list[Span]
    offsets: list[int]


def create(path: Path, chunks: Sequence[Chunk], *, with_version: bool) -> Blobs:
    """Write a file of chunks with holes for their data; `with_version`: the version of the checkpoint comes first.

    Raises:
        OSError: the file cannot be written.
    """
    frames = blob_frames(chunks, with_version=with_version)
    write_frames(path, frames)
    blobs, start = Blobs(spans=[], offsets=[]), 0
    for frame in frames:
        blobs.spans.append((start, frame.nbytes))
        blobs.offsets.extend(start + hole for hole in frame.holes)
        start += frame.nbytes
    return blobs


def blob_frames(chunks: Sequence[Chunk], *, with_version: bool) -> list[Frame]:
    """The frames of the blobs of a file, in order; chunks of one element type and shape share a frame."""
    frame = cache(tensor_frame)
    frames = [frame(chunk.tensor.dtype, chunk.tensor.shape) for chunk in chunks]
    return [value_frame(CHECKPOINT_VERSION), *frames] if with_version else frames
