"""The files of a torch_dist result: those of a DCP, `metadata.json`, and the common part.

Owns the content of the last two, in the form that Megatron-core 0.12 to 0.19 read; 0.19 itself writes the common part
among the tensors, which those before it do not find.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.formats.base import Located
from distconv.formats.dcp.files import DcpFiles
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.dcp.plan import DcpPlan
from distconv.formats.foreign import KIND_NAME
from distconv.formats.iterations import CHECKPOINT_VERSION, VERSION_KEY
from distconv.formats.readers import Reader, importing
from distconv.formats.torch_dist.common import COMMON_NAME
from distconv.formats.torch_dist.kind import check_kind, kind_content
from distconv.formats.torch_zip.archive import read_archive
from distconv.formats.torch_zip.create import value_frame
from distconv.formats.torch_zip.inert_pickle import Namespace
from distconv.formats.torch_zip.write_pickle import Global, Instance
from distconv.tensors.stored import SourceFile

_ARGUMENTS = Global("argparse", "Namespace")


class TorchDistFiles(DcpFiles):
    """The files of the result of a plan: of an iteration, of training with these arguments."""

    def __init__(self, plan: DcpPlan, arguments: Mapping[str, Any], iteration: int) -> None:
        super().__init__(plan)
        self._arguments, self._iteration = arguments, iteration

    def beside(self) -> Mapping[str, bytes | SourceFile]:
        """The common part, `.metadata`, and `metadata.json`, which makes it a checkpoint."""
        common = {
            "args": Instance(_ARGUMENTS, dict(self._arguments)),
            VERSION_KEY: CHECKPOINT_VERSION,
            "iteration": self._iteration,
            "num_floating_point_operations_so_far": 0,
            "content_metadata": {"singleton_local_shards": False},
        }
        ((_, content),) = value_frame(common).pieces
        return {COMMON_NAME: content, **super().beside(), KIND_NAME: json.dumps(kind_content()).encode()}

    def reader(self) -> Reader:
        """As of a DCP, with the common part."""
        with importing("torch"):
            from distconv.formats.torch_dist.reader import TorchDistReader  # noqa: PLC0415 - imports torch
        return TorchDistReader(self._plan)

    def locate_beside(self, directory: Path, name: str) -> Located:
        """What the file says otherwise."""
        if name == METADATA:
            return super().locate_beside(directory, name)
        if name == KIND_NAME:
            check_kind(directory, [])
            return Located(offsets={})
        content = read_archive(directory / name)
        args = content.get("args")
        found = args.values if isinstance(args, Namespace) else {}
        expected = {VERSION_KEY: CHECKPOINT_VERSION, "iteration": self._iteration}
        pairs = [(key, content.get(key), value) for key, value in expected.items()]
        pairs += [(f"args.{key}", found.get(key), value) for key, value in self._arguments.items()]
        differences = [
            f"{directory / name}: {key} is {other!r}, expected {value!r}"
            for key, other, value in pairs
            if other != value
        ]
        return Located(offsets={}, differences=differences)
