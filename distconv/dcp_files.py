"""The files of a DCP result: chunks as `torch.save` blobs, one after the other, and `.metadata` beside them.

Owns their structure; the blobs are the business of `dcp_blobs` and `torch_archive`, the metadata of `dcp_planner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distconv.dcp_plan import DcpPlan
from distconv.formats import LaidOut, Located
from distconv.outputs import Entry, OutputFile
from distconv.torch_archive import read_blob


class DcpFormat:
    """The format of the result of a plan."""

    pattern = "*.distcp"

    def __init__(self, plan: DcpPlan) -> None:
        self._plan = plan

    def lay_out(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> LaidOut:
        """Write the blobs with holes for their data; the details are their spans."""
        from distconv.dcp_blobs import lay_out  # noqa: PLC0415 - torch takes a second to import; planning does without it

        first = file == self._plan.files[0]
        spans = lay_out(path, self._plan.chunks(file), with_version=first)
        with path.open("rb") as stream:
            offsets = {
                (entry.key, entry.name): read_blob(stream, str(path), *span).offset
                for entry, span in zip(entries, spans[first:], strict=True)
            }
        return LaidOut(offsets=offsets, details=spans)

    def finish(self, directory: Path, details: Mapping[str, Any]) -> Mapping[str, int]:
        """Write `.metadata`."""
        from distconv.dcp_planner import write_metadata  # noqa: PLC0415 - as above; its checkpoint package takes another

        path = write_metadata(directory, self._plan, details)
        return {path.name: path.stat().st_size}

    def locate(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Located:
        """TODO."""
        return Located(offsets={})

    def check(self, directory: Path) -> list[str]:
        """TODO."""
        return []
