"""The files of a DCP result: chunks as concatenated `torch.save` blobs, and `.metadata` beside them.

Owns their comparison with a plan; the bytes of blobs and metadata belong to `blobs` and `write_metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distconv.formats.base import FileFormat, Located
from distconv.formats.dcp.blobs import blob_frames, spans_of
from distconv.formats.dcp.metadata import METADATA, Metadata, read_metadata
from distconv.formats.dcp.plan import DcpPlan
from distconv.formats.dcp.write_metadata import metadata_bytes
from distconv.formats.frame import Frame, joined_frames
from distconv.formats.readers import Reader, importing
from distconv.formats.records import Entry, OutputFile, mismatch
from distconv.formats.torch_zip.archive import ArchivedTensor, is_written_by_torch
from distconv.formats.torch_zip.blobs import stored_within
from distconv.tensors.stored import SourceFile


class DcpFiles(FileFormat):
    """The files of the result of `plan`."""

    def __init__(self, plan: DcpPlan) -> None:
        self._plan = plan
        self._known: Metadata | None = None

    def frame(self, file: OutputFile, entries: Sequence[Entry]) -> Frame:  # noqa: ARG002 - of the interface
        """The blobs but for their data."""
        return joined_frames(self._blobs(file))

    def beside(self) -> Mapping[str, bytes | SourceFile]:
        """`.metadata`."""
        spans = {file.path: spans_of(self._blobs(file)) for file in self._plan.files}
        return {METADATA: metadata_bytes(self._plan, spans)}

    def _blobs(self, file: OutputFile) -> list[Frame]:
        return blob_frames(self._plan.values_in(file), self._plan.chunks(file))

    def reader(self) -> Reader:
        """Torch's own."""
        with importing("torch"):
            from distconv.formats.dcp.reader import DcpReader  # noqa: PLC0415 - imports torch
        return DcpReader(self._plan)

    def locate(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Located:
        """Compare the chunks at the positions in the metadata with the entries."""
        stored = {
            (name, chunk.offsets): chunk.places[0]
            for name, entry in self._metadata(path.parent).tensors.items()
            for chunk in entry.chunks
        }
        offsets, differences = {}, []
        with stored_within(path) as read:
            for chunk, entry in zip(self._plan.chunks(file), entries, strict=True):
                place = stored.get((self._plan.full_name(chunk.whole), chunk.offsets))
                if place is None or place.file != path.name:
                    differences.append(f"{path}: {entry.key} {entry.name} is not in it, or elsewhere")
                    continue
                found = read(place.offset, place.length)
                wrong = (
                    mismatch(entry, found.dtype, found.shape) if isinstance(found, ArchivedTensor) else "is no tensor"
                )
                if wrong is not None:
                    differences.append(f"{path}: {entry.key} {entry.name} {wrong}")
                else:
                    offsets[entry.key, entry.name] = found.offset
        return Located(offsets=offsets, differences=differences, foreign=is_written_by_torch(path))

    def locate_beside(self, directory: Path, name: str) -> Located:
        """What the metadata says of tensors that are not expected, or of another shape."""
        if name != METADATA:
            return Located(offsets={})
        expected = {self._plan.full_name(each): (each.dtype, each.shape) for each in self._plan.tensors()}
        path = directory / METADATA
        found = {name: (entry.dtype, entry.shape) for name, entry in self._metadata(directory).tensors.items()}
        differences = [
            f"{path}: {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        # Files of one program.
        foreign = is_written_by_torch(directory / self._plan.files[0].path)
        return Located(offsets={}, differences=differences, foreign=foreign)

    def _metadata(self, directory: Path) -> Metadata:
        if self._known is None:
            self._known = read_metadata(directory / METADATA)
        return self._known
