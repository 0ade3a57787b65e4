"""Reading a torch_dist checkpoint: its tensors as a DCP, its common part with `torch.load`. Imports torch."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from distconv.formats.dcp.reader import DcpReader
from distconv.formats.readers import reading_by
from distconv.formats.torch_dist.common import COMMON_NAME


class TorchDistReader(DcpReader):
    """`FileSystemReader` of the tensors, and `torch.load` of the common part."""

    def beside(self, directory: Path) -> list[str]:
        """What the metadata says; that the common part is a dictionary which loads, with the class of its arguments."""
        path = directory / COMMON_NAME
        with reading_by("torch.load", path), torch.serialization.safe_globals([Namespace]):
            common = torch.load(path, map_location="cpu", weights_only=True)
        differences = super().beside(directory)
        if not isinstance(common, dict) or not isinstance(common.get("args"), Namespace):
            differences.append(f"{path}: expected a dictionary with the arguments of training")
        return differences
