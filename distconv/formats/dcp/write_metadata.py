"""The `.metadata` of a DCP result: what torch's own planner makes and checks, and its own writer writes.

Owns the items that the planner is told of. No process group is needed: which chunk is whose follows from the plan, and
where it went is told with the outcome.
Format: `torch/distributed/checkpoint/filesystem.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from distconv.formats.dcp.blobs import Span
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.dcp.plan import MODEL_KEY, Chunk, DcpPlan
from distconv.formats.iterations import CHECKPOINT_VERSION, VERSION_KEY
from distconv.tensors.stored import NamedTensor


def write_metadata(directory: Path, plan: DcpPlan, spans: Mapping[str, Sequence[Span]]) -> Path:
    """Write `.metadata` for files that were laid out with these spans, by path; where it is.

    Raises:
        OSError: it cannot be written.
    """
    planner = _Planner(plan)
    state_dict = {MODEL_KEY: {each.name: _meta(each) for each in plan.tensors()}, VERSION_KEY: CHECKPOINT_VERSION}
    planner.set_up_planner(state_dict, is_coordinator=True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    places = [(file.path, span) for file in plan.files for span in spans[file.path]]
    results = [
        WriteResult(index=item.index, size_in_bytes=length, storage_data=_StorageInfo(path, offset, length))
        for item, (path, (offset, length)) in zip(plans[0].items, places, strict=True)
    ]
    _Writer(directory, sync_files=False).finish(metadata, [results])
    return directory / METADATA


class _Planner(DefaultSavePlanner):
    """Torch's planner for chunks that the plan of the job has chosen."""

    def __init__(self, plan: DcpPlan) -> None:
        super().__init__()
        self._plan = plan

    def create_local_plan(self) -> SavePlan:
        """An item for each span of each file, in order."""
        items = [WriteItem(index=MetadataIndex(VERSION_KEY), type=WriteItemType.BYTE_IO)]
        items += [_item(chunk) for part in self._plan.parts for chunk in part]
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan


class _Writer(FileSystemWriter):
    """Torch's writer; without the path and the random number that it would record of the directory it writes to."""

    def storage_meta(self) -> StorageMeta:
        """Nothing."""
        return StorageMeta()


def _meta(whole: NamedTensor) -> torch.Tensor:
    return torch.empty(whole.tensor.shape, dtype=getattr(torch, whole.tensor.dtype), device="meta")


def _item(chunk: Chunk) -> WriteItem:
    offsets = torch.Size(chunk.offsets)
    return WriteItem(
        index=MetadataIndex(f"{MODEL_KEY}.{chunk.key}", offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(chunk.tensor.shape)),
            properties=TensorProperties(dtype=getattr(torch, chunk.tensor.dtype)),
            size=torch.Size(chunk.whole.tensor.shape),
        ),
    )
