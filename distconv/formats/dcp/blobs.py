"""The blobs of a DCP result: one after the other in a file, as `torch.save` writes them.

Torch lays them out; they are filled afterwards. Needs torch alone: its checkpoint package is slow to import, and large.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch

from distconv.formats.dcp.plan import Chunk
from distconv.formats.iterations import CHECKPOINT_VERSION

# A span of bytes in a file: offset and length.
Span = tuple[int, int]


def lay_out(path: Path, chunks: Sequence[Chunk], *, with_version: bool) -> list[Span]:
    """Write a file of blobs with holes for their data; the span of each; that of the version first, if asked for.

    Raises:
        OSError: the file cannot be written.
    """
    spans = []
    with path.open("wb") as stream:
        if with_version:
            blob = io.BytesIO()
            torch.save(CHECKPOINT_VERSION, blob)
            stream.write(blob.getbuffer())
            spans.append((0, stream.tell()))
        for chunk in chunks:
            start = stream.tell()
            with torch.serialization.skip_data():
                torch.save(torch.empty(chunk.tensor.shape, dtype=getattr(torch, chunk.tensor.dtype)), stream)
            spans.append((start, stream.tell() - start))
    return spans
