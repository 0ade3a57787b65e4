"""The files of a DCP result: chunks as concatenated `torch.save` blobs, and `.metadata` beside them.

Owns their comparison with a plan; the bytes of blobs and metadata belong to `blobs` and `write_metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distconv.formats.base import Created, FileFormat, Located
from distconv.formats.dcp.blobs import create
from distconv.formats.dcp.metadata import METADATA, Metadata, read_metadata
from distconv.formats.dcp.plan import MODEL_KEY, DcpPlan
from distconv.formats.dcp.write_metadata import write_metadata
from distconv.formats.records import Entry, OutputFile, mismatch
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.formats.torch_zip.blobs import stored_within


class DcpFiles(FileFormat):
    """The files of the result of `plan`."""

    pattern = "*.distcp"

    def __init__(self, plan: DcpPlan) -> None:
        self._plan = plan
        self._known: Metadata | None = None

    def create(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Created:
        """Write the blobs with holes for their data; the details are their spans."""
        blobs = create(path, self._plan.chunks(file), with_version=file == self._plan.files[0])
        names = ((entry.key, entry.name) for entry in entries)
        return Created(offsets=dict(zip(names, blobs.offsets, strict=True)), details=blobs.spans)

    def finish(self, directory: Path, details: Mapping[str, Any]) -> Mapping[str, int]:
        """Write `.metadata`."""
        path = write_metadata(directory, self._plan, details)
        return {path.name: path.stat().st_size}

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
                place = stored.get((f"{MODEL_KEY}.{chunk.whole.name}", chunk.offsets))
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
        return Located(offsets=offsets, differences=differences)

    def check(self, directory: Path) -> list[str]:
        """Tensors in the metadata that are unexpected or have another shape, in words."""
        expected = {f"{MODEL_KEY}.{each.name}": (each.tensor.dtype, each.tensor.shape) for each in self._plan.tensors()}
        path = directory / METADATA
        found = {name: (entry.dtype, entry.shape) for name, entry in self._metadata(directory).tensors.items()}
        return [
            f"{path}: {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]

    def _metadata(self, directory: Path) -> Metadata:
        if self._known is None:
            self._known = read_metadata(directory / METADATA)
        return self._known
