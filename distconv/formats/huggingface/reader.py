"""Reading a published directory as transformers does, with safetensors. Imports it, and torch.

Owns what the index must say: each tensor, and its file.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from distconv.errors import named
from distconv.formats.huggingface.plan import HuggingFacePlan
from distconv.formats.readers import Reader, ReadFile, reading_by
from distconv.formats.records import OutputFile
from distconv.formats.torch_tensors import mapped_file

_INDEX_SUFFIX = ".safetensors.index.json"


class SafetensorsReader(Reader):
    """`safetensors.safe_open` of the files of `plan`."""

    name = "safetensors"

    def __init__(self, plan: HuggingFacePlan) -> None:
        self._plan = plan

    def open(self, directory: Path, file: OutputFile) -> ReadFile:
        """All tensors of a file, mapped."""
        path = directory / file.path
        # It takes no path with bytes that are no text; nothing else keeps the mapping than the tensors.
        with reading_by(self.name, path), safe_open(path, framework="pt", device="cpu") as opened:
            return mapped_file({("", name): opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118

    def beside(self, directory: Path) -> list[str]:
        """The index, which must be there for more than one file, and name all tensors in their files."""
        expected = {entry.name: file.path for file in self._plan.files for entry in self._plan.shard_files[file.path]}
        paths = sorted(directory.glob(f"*{_INDEX_SUFFIX}"))
        if not paths and len(self._plan.files) > 1:
            return [f"{directory}: has no index (*{_INDEX_SUFFIX}), without which its files are not found"]
        differences = []
        for path in paths:
            with reading_by("json", path):
                found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
                wrong = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
            if wrong:
                differences.append(f"{path}: does not name the file of {named(wrong)}, or of what is no tensor")
        return differences
