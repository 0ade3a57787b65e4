"""The blobs of a DCP result: `torch.save` archives of one tensor or value, concatenated in a file.

Owns the list of blobs of a file. Data is aligned within an archive, as torch does it, never within the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import accumulate

from distconv.formats.dcp.plan import Chunk, Value
from distconv.formats.frame import Frame
from distconv.formats.torch_zip.create import tensor_frame

# A span of bytes in a file: offset and length.
Span = tuple[int, int]


def blob_frames(values: Iterable[Value], chunks: Iterable[Chunk]) -> list[Frame]:
    """The frames of the blobs of a file: those of values, then those of chunks, of which equal ones share a frame."""
    frame = cache(tensor_frame)
    return [*(value.frame for value in values), *(frame(chunk.tensor.dtype, chunk.shape) for chunk in chunks)]


def spans_of(frames: Iterable[Frame]) -> list[Span]:
    """Where the blobs are in their file."""
    sizes = [frame.nbytes for frame in frames]
    return list(zip(accumulate(sizes, initial=0), sizes, strict=False))
