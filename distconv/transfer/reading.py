"""Reading elements of a source as numbers, whatever they are stored as.

Owns the reading of a thread, and what a failing one is called. Never writes, and never decides what is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distconv.errors import JobError, system_problem
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import StoredTensor
from distconv.transfer.files import read_into
from distconv.transfer.sinks import Counters
from distconv.transfer.sources import SourceFiles

if TYPE_CHECKING:
    from distconv.tensors.quantised import Dequantise


class Reader:
    """The reading of one thread."""

    def __init__(self, sources: SourceFiles, counters: Counters) -> None:
        self._sources, self._counters = sources, counters
        self._dequantise: Dequantise | None = None
        # What was read last of scales: the boxes of a tensor mostly follow each other.
        self._scales: tuple[StoredTensor, int, memoryview] | None = None

    def read(self, stored: StoredTensor, dtype: str, offset: int, nbytes: int, into: memoryview) -> memoryview:
        """Elements of the type that a tensor is read as, in front of a buffer.

        `offset` and `nbytes` are in bytes of elements of type `dtype`, which are made of them.

        Raises:
            JobError: a read failed; the message names tensor and file.
        """
        first, count, size = offset // ITEM_SIZE[dtype], nbytes // ITEM_SIZE[dtype], ITEM_SIZE[stored.read_as]
        data = into[: count * size]
        if stored.quantised is None:
            self._fill(stored, first * size, data)
            return data
        # Here, since whoever reads nothing of the kind needs no numpy.
        with self._counters.importing():
            from distconv.tensors.quantised import Dequantise, boxes  # noqa: PLC0415

        if self._dequantise is None:
            self._dequantise = Dequantise()
        done = 0
        for box in boxes(stored, first, count):
            codes = memoryview(bytearray(box.code_bytes))
            self._fill(stored, box.code_offset, codes)
            scales = self._of_scales(stored.quantised.scales, box.scale_offset, box.scale_bytes)
            made = data[done : done + box.rows * box.columns * size]
            self._dequantise(stored, box, codes, scales, made)
            done += len(made)
        return data

    def _of_scales(self, stored: StoredTensor, offset: int, nbytes: int) -> memoryview:
        """Bytes of a tensor of scales."""
        if self._scales is not None:
            known, start, data = self._scales
            if known is stored and start <= offset and offset + nbytes <= start + len(data):
                return data[offset - start : offset - start + nbytes]
        data = memoryview(bytearray(nbytes))
        self._fill(stored, offset, data)
        self._scales = stored, offset, data
        return data

    def _fill(self, stored: StoredTensor, offset: int, data: memoryview) -> None:
        """Fill a buffer with the bytes of a tensor from an offset in it."""
        self._counters.progress.reach(stored.file.path)
        try:
            with self._sources.opened(stored.file) as source:
                read_into(source, stored.offset + offset, data)
        except OSError as error:
            raise failure(f"reading {stored.name} from {stored.file.path}", error) from error
        self._counters.add(read=len(data))


def failure(doing: str, error: OSError) -> JobError:
    """The failure of a transfer, by what it was doing."""
    return JobError(system_problem(doing, error))
