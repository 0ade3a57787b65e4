"""The files of a Hugging Face result: shard files, and beside them the index, configuration and other side files.

Owns their comparison with the plan, and the copies of side files; the bytes of a shard file belong to `safetensors`.
Computes no content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distconv.formats.base import Created, FileFormat, Located
from distconv.formats.huggingface.plan import HuggingFacePlan
from distconv.formats.huggingface.reference import check_side_files, copy_side_file, side_files
from distconv.formats.huggingface.safetensors import create, read_header
from distconv.formats.records import Entry, OutputFile, mismatch


class HuggingFaceFiles(FileFormat):
    """The files of the result of `plan`."""

    pattern = "*.safetensors"

    def __init__(self, plan: HuggingFacePlan) -> None:
        self._plan = plan

    def create(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Created:  # noqa: ARG002 - of the interface
        """Write the header and a hole for the data."""
        offsets = create(path, ((entry.name, entry.tensor.dtype, entry.tensor.shape) for entry in entries))
        return Created(offsets={("", name): offset for name, offset in offsets.items()})

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

    def finish(self, directory: Path, details: Mapping[str, Any]) -> Mapping[str, int]:  # noqa: ARG002
        """Write the index and changed texts, and copy the side files of the reference."""
        sizes = {}
        for name, text in self._plan.texts.items():
            sizes[name] = (directory / name).write_bytes(text.encode())
        for reference, name in self._copied():
            sizes[name] = copy_side_file(reference, name, directory)
        return sizes

    def check(self, directory: Path) -> list[str]:
        """The texts and side files that are missing or differ, in words."""
        expected = [(name, text.encode()) for name, text in self._plan.texts.items()]
        differences = [
            f"{directory / name}: is missing, or not what it should be"
            for name, text in expected
            if _bytes(directory / name) != text
        ]
        return differences + [
            f"{directory / name}: is not as in {reference}"
            for reference, name in self._copied()
            if _bytes(directory / name) != _bytes(reference / name)
        ]

    def _copied(self) -> Iterator[tuple[Path, str]]:
        """Copied files: the path in the reference, and the path below the result."""
        if self._plan.reference is None:
            return
        reference = Path(self._plan.reference)
        yield from ((reference, name) for name in side_files(reference) if name not in self._plan.texts)
        if self._plan.index_name is not None:
            yield reference, self._plan.index_name


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
