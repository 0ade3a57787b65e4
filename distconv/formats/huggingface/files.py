"""The files of a Hugging Face result: shard files, and beside them the index, configuration and other side files.

Owns their comparison with the plan, and the copies of side files; the bytes of a shard file belong to `safetensors`.
Computes no content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distconv.formats.base import FileFormat, Located
from distconv.formats.frame import Frame
from distconv.formats.huggingface.plan import HuggingFacePlan
from distconv.formats.huggingface.reference import check_side_files
from distconv.formats.huggingface.safetensors import read_header, safetensors_frame
from distconv.formats.readers import Reader, importing
from distconv.formats.records import Entry, OutputFile, mismatch
from distconv.tensors.stored import SourceFile


class HuggingFaceFiles(FileFormat):
    """The files of the result of `plan`."""

    def __init__(self, plan: HuggingFacePlan) -> None:
        self._plan = plan

    def frame(self, file: OutputFile, entries: Sequence[Entry]) -> Frame:  # noqa: ARG002 - of the interface
        """The header."""
        return safetensors_frame((entry.name, entry.tensor.dtype, entry.tensor.shape) for entry in entries)

    def reader(self) -> Reader:
        """Safetensors."""
        with importing("safetensors"):
            from distconv.formats.huggingface.reader import SafetensorsReader  # noqa: PLC0415 - imports torch
        return SafetensorsReader(self._plan)

    def locate(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Located:  # noqa: ARG002
        """Compare the tensors of the header with the entries."""
        found = {tensor.name: tensor for tensor in read_header(path)}
        expected = {entry.name for entry in entries}
        differences = [f"{path}: {name} is not expected" for name in found if name not in expected]
        offsets = {}
        for entry in entries:
            tensor = found.get(entry.name)
            wrong = "is missing" if tensor is None else mismatch(entry, tensor.dtype, tensor.shape)
            if wrong is not None:
                differences.append(f"{path}: {entry.name} {wrong}")
            elif tensor is not None:
                offsets["", entry.name] = tensor.offset
        return Located(offsets=offsets, differences=differences)

    def check_inputs(self) -> None:
        """Raise `InputError` for side files of the reference that cannot be copied."""
        if self._plan.reference is not None:
            check_side_files(Path(self._plan.reference))

    def beside(self) -> Mapping[str, bytes | SourceFile]:
        """The texts of the plan, the index, and what the reference has beside its weights."""
        return {**self._plan.copied, **{name: text.encode() for name, text in self._plan.texts.items()}}
