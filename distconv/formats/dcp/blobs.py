"""The blobs of a DCP result: `torch.save` archives of one tensor or value, concatenated in a file.

Owns the list of blobs of a file. Data is aligned within an archive, as torch does it, never within the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate

from distconv.formats.dcp.plan import Chunk
from distconv.formats.frame import Frame
from distconv.formats.iterations import CHECKPOINT_VERSION
from distconv.formats.torch_zip.create import tensor_frame, value_frame

# A span of bytes in a file: offset and length.
Span = tuple[int, int]


def blob_frames(chunks: Sequence[Chunk], *, with_version: bool) -> list[Frame]:
    """The frames of the blobs of a file, behind the version of the checkpoint if asked for; equal chunks share one."""
    frame = cache(tensor_frame)
    frames = [frame(chunk.tensor.dtype, chunk.tensor.shape) for chunk in chunks]
    return [value_frame(CHECKPOINT_VERSION), *frames] if with_version else frames


def spans_of(frames: Iterable[Frame]) -> list[Span]:
    """Where the blobs are in their file."""
    sizes = [frame.nbytes for frame in frames]
    return list(zip(accumulate(sizes, initial=0), sizes, strict=False))
