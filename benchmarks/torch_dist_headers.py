"""Torch_dist checkpoints of the largest models as headers alone: files with holes instead of tensor data.

Owns two forms of the same tensors: as distconv writes them, and as Megatron-core writes them on many ranks, in chunks
of these ranks, each state of a module with a blob of its own, and all plans of the writers in `.metadata`. The latter
is made with the classes of torch; cuts and files are those of a run with tensor, pipeline and expert parallelism.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from largest import EP, TP

from tests.published import Published
from tests.published_language_models import MIXTURE_OF_DEEPSEEK, Decoder, Latent, of
from tests.published_towers import Text

if TYPE_CHECKING:
    from distconv.formats.base import FileFormat
    from distconv.formats.dcp.plan import DcpPlan, Whole
    from distconv.tensors.virtual import Index

PP = 8
FILES_OF_RANK = 2
# How ranks of training share a tensor, by the end of its key; all that is not named here is whole on each.
_CUT_ROWS = re.compile(r"(word_embeddings|output_layer|eh_proj|_(up_proj)|linear_q_proj)\.weight")
_CUT_COLUMNS = re.compile(r"(linear_proj|linear_fc2)\.weight")
_GATED = re.compile(r"linear_fc1\.weight")
_EXPERTS = ".mlp.experts."
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_Box = tuple["Index", "Index"]


class _Placed(NamedTuple):
    """A chunk of a tensor, or a state, and where it is."""

    rank: int
    key: str
    whole: Whole | None
    box: _Box | None
    file: str
    offset: int
    nbytes: int


def deepseek_v3(divisor: int) -> Published:
    """The language model alone, with the layer that predicts one more token."""
    size = replace(Text(61, 7168, 128, 128, 18432, 129280), layers=61 // divisor)
    decoder = Decoder(size=size, latent=Latent(), mixture=MIXTURE_OF_DEEPSEEK, further=1)
    return of("DeepSeek-V3", "deepseek_v3", decoder, parameters=None)


def write_as_planned(directory: Path, plan: DcpPlan, files: FileFormat) -> None:
    """Write the files of a plan, with holes where tensor data belongs."""
    from distconv.formats.frame import write_frame  # noqa: PLC0415

    directory.mkdir()
    for file in plan.files:
        write_frame(directory / file.path, files.frame(file, tuple(plan.entries(file))))
    _write_beside(directory, files)


def write_as_megatron(directory: Path, plan: DcpPlan, files: FileFormat) -> None:
    """Write the tensors and states of a plan as Megatron-core does it on many ranks."""
    from distconv.formats.dcp.blobs import spans_of  # noqa: PLC0415
    from distconv.formats.dcp.metadata import METADATA  # noqa: PLC0415
    from distconv.formats.frame import joined_frames, write_frame  # noqa: PLC0415
    from distconv.formats.torch_zip.create import empty_state_frame, tensor_frame  # noqa: PLC0415

    directory.mkdir()
    frame = cache(tensor_frame)
    _write_beside(directory, files)
    layers = 1 + max(int(match[1]) for each in plan.tensors() if (match := _LAYER.match(each.name)))
    of_ranks: dict[int, list[tuple[str, Whole | None, _Box | None]]] = {}
    for tensor in plan.tensors():
        for number, box in enumerate(boxes_of(tensor)):
            of_ranks.setdefault(_rank(tensor.name, box[0][0], number, layers), []).append((tensor.name, tensor, box))
    for key in plan.values[0].keys:
        first = key.rpartition("/shard_")[2].partition("_")[0]
        of_ranks.setdefault(_rank(key, int(first), 0, layers), []).append((key, None, None))
    state = empty_state_frame()
    placed = []
    for rank, items in sorted(of_ranks.items()):
        for number in range(FILES_OF_RANK):
            own = items[number::FILES_OF_RANK]
            frames = [state if box is None or held is None else frame(held.dtype, box[1]) for _, held, box in own]
            name = f"__{rank}_{number}.distcp"
            write_frame(directory / name, joined_frames(frames))
            for item, (offset, nbytes) in zip(own, spans_of(frames), strict=True):
                placed.append(_Placed(rank, *item, name, offset, nbytes))
    (directory / METADATA).write_bytes(_metadata_of_torch(placed))


def boxes_of(tensor: Whole) -> Iterator[_Box]:
    """The chunks of a tensor, as offsets and lengths: rows or columns of ranks, and each expert and half of a unit."""
    shape = tensor.shape
    lengths = list(shape)
    in_front = 1 if _EXPERTS in tensor.name else 0
    if in_front:
        lengths[0] = 1
    if _GATED.search(tensor.name):
        lengths[in_front] //= 2
    if not in_front:
        if _CUT_COLUMNS.search(tensor.name):
            lengths[-1] //= TP
        elif _CUT_ROWS.search(tensor.name) or _GATED.search(tensor.name):
            lengths[0] //= TP
    starts = product(*(range(0, size, length) for size, length in zip(shape, lengths, strict=True)))
    return ((start, tuple(lengths)) for start in starts)


def _rank(key: str, first: int, number: int, layers: int) -> int:
    """The rank that writes a chunk: of its stage, and of its expert, the `first` offset, or else of its number."""
    match = _LAYER.match(key)
    stage = int(match[1]) * PP // layers if match else PP - 1
    return stage * TP * EP + (first if _EXPERTS in key else number) % (TP * EP)


def _metadata_of_torch(placed: Iterable[_Placed]) -> bytes:
    """The `.metadata` of chunks and states: what each rank tells comes unpickled, so nothing of it is one object."""
    from torch.distributed.checkpoint import metadata  # noqa: PLC0415
    from torch.distributed.checkpoint.filesystem import _StorageInfo  # noqa: PLC0415
    from torch.distributed.checkpoint.planner import SavePlan, WriteItemType  # noqa: PLC0415

    entries: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    plans = []
    for _, written in groupby(placed, key=lambda each: each.rank):
        of_rank = list(written)
        plan = pickle.loads(pickle.dumps(SavePlan(items=[_item(each) for each in of_rank])))  # noqa: S301
        for item in plan.items:
            key, data = item.index.fqn, item.tensor_data
            if item.type is WriteItemType.BYTE_IO:
                entries[key] = metadata.BytesStorageMetadata()
            else:
                empty = metadata.TensorStorageMetadata(properties=data.properties, size=data.size, chunks=[])
                entries.setdefault(key, empty).chunks.append(data.chunk)
        plans.append(plan)
        told = [(_item(each).index, _StorageInfo(each.file, each.offset, each.nbytes)) for each in of_rank]
        places |= dict(pickle.loads(pickle.dumps(told)))  # noqa: S301
    found = metadata.Metadata(state_dict_metadata=entries, storage_data=places)
    found.all_local_plans = plans  # type: ignore[attr-defined]  # as Megatron-core does it
    return pickle.dumps(found)


def _item(each: _Placed) -> Any:
    """What the plan of a rank has of a chunk or a state."""
    import torch  # noqa: PLC0415
    from torch.distributed.checkpoint import metadata  # noqa: PLC0415
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType  # noqa: PLC0415

    if each.whole is None or each.box is None:
        return WriteItem(index=metadata.MetadataIndex(each.key), type=WriteItemType.BYTE_IO)
    offsets, lengths = map(torch.Size, each.box)
    data = TensorWriteData(
        chunk=metadata.ChunkStorageMetadata(offsets, lengths),
        properties=metadata.TensorProperties(dtype=getattr(torch, each.whole.dtype)),
        size=torch.Size(each.whole.shape),
    )
    return WriteItem(index=metadata.MetadataIndex(each.key, offsets), type=WriteItemType.SHARD, tensor_data=data)


def _write_beside(directory: Path, files: FileFormat) -> None:
    for name, content in files.beside().items():
        assert isinstance(content, bytes)
        (directory / name).write_bytes(content)


FORMS: Mapping[str, Callable[[Path, DcpPlan, FileFormat], None]] = {
    "distconv": write_as_planned,
    "Megatron-core": write_as_megatron,
}
