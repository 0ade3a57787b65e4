"""Reading rank files as training does, with `torch.load`. Imports torch; owns what else must be in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distconv.formats.iterations import CHECKPOINT_VERSION, VERSION_KEY
from distconv.formats.readers import Key, Reader, ReadFile, reading_by
from distconv.formats.records import OutputFile
from distconv.formats.torch_tensors import mapped_file


class RankFileReader(Reader):
    """`torch.load` of rank files; `dictionaries` as for `MegatronFiles`."""

    name = "torch.load"

    def __init__(self, dictionaries: Sequence[str]) -> None:
        self._dictionaries = dictionaries

    def open(self, directory: Path, file: OutputFile) -> ReadFile:
        """All dictionaries of a file, mapped."""
        path = directory / file.path
        with reading_by(self.name, path):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict):
            return mapped_file({}, [f"is a {type(content).__name__}, expected a dictionary"])
        version = content.get(VERSION_KEY)
        differences = []
        if version != CHECKPOINT_VERSION:
            differences.append(f"{VERSION_KEY} is {version!r}, expected {CHECKPOINT_VERSION}")
        tensors: dict[Key, Any] = {}
        for key in self._dictionaries:
            held = content.get(key)
            if isinstance(held, dict):
                tensors |= {(key, name): value for name, value in held.items()}
            else:
                differences.append(f"has no {key}")
        known = {*self._dictionaries, VERSION_KEY}
        differences += [f"{key} is not expected" for key in content if key not in known]
        return mapped_file(tensors, differences)
