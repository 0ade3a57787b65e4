"""The rank files of a Megatron result: `torch.save` archives with a dictionary of tensors per virtual stage.

Owns their keys and plain entries, and their comparison with a plan; the bytes of an archive belong to `torch_zip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distconv.formats.base import FileFormat, Located
from distconv.formats.frame import Frame
from distconv.formats.iterations import CHECKPOINT_VERSION, VERSION_KEY
from distconv.formats.readers import Reader, importing
from distconv.formats.records import Entry, OutputFile, mismatch
from distconv.formats.torch_zip.archive import ArchivedTensor, is_written_by_torch, read_archive
from distconv.formats.torch_zip.create import dictionaries_frame


class MegatronFiles(FileFormat):
    """The rank files of a result; `dictionaries`: the keys of the dictionaries of tensors, in every file."""

    def __init__(self, dictionaries: Sequence[str]) -> None:
        self._dictionaries = dictionaries

    def frame(self, file: OutputFile, entries: Sequence[Entry]) -> Frame:  # noqa: ARG002 - of the interface
        """The archive but for its data."""
        tensors = [(entry.key, entry.name, entry.tensor.dtype, entry.shape) for entry in entries]
        frame, offsets = dictionaries_frame(self._dictionaries, tensors, {VERSION_KEY: CHECKPOINT_VERSION})
        return replace(frame, holes=[offsets[entry.key, entry.name] for entry in entries])

    def reader(self) -> Reader:
        """`torch.load`."""
        with importing("torch"):
            from distconv.formats.megatron.reader import RankFileReader  # noqa: PLC0415 - imports torch
        return RankFileReader(self._dictionaries)

    def locate(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Located:  # noqa: ARG002
        """Compare the tensors and keys of the archive with the entries."""
        content = read_archive(path)
        differences = []
        version = content.get(VERSION_KEY)
        if version != CHECKPOINT_VERSION:
            differences.append(f"{path}: {VERSION_KEY} is {version!r}, expected {CHECKPOINT_VERSION}")
        expected = {(entry.key, entry.name) for entry in entries}
        for key in self._dictionaries:
            found = content.get(key)
            if isinstance(found, dict):
                differences += [
                    f"{path}: {key}/{name} is not expected" for name in found if (key, name) not in expected
                ]
            else:
                differences.append(f"{path}: has no {key}")
        offsets = {}
        for entry in entries:
            tensor = _archived(content, entry)
            wrong = "is missing" if tensor is None else mismatch(entry, tensor.dtype, tensor.shape)
            if tensor is not None and wrong is None and not tensor.is_contiguous:
                wrong = "is not contiguous"
            if wrong is not None:
                differences.append(f"{path}: {entry.title} {wrong}")
            elif tensor is not None:
                offsets[entry.key, entry.name] = tensor.offset
        foreign = is_written_by_torch(path)
        return Located(offsets=offsets, differences=differences, foreign=foreign)


def _archived(content: Mapping[str, Any], entry: Entry) -> ArchivedTensor | None:
    entries = content.get(entry.key)
    found = entries.get(entry.name) if isinstance(entries, dict) else None
    return found if isinstance(found, ArchivedTensor) else None
