"""The `.metadata` of a DCP result: which tensors there are, in which chunks, and which blob holds each.

Owns the objects that readers of torch unpickle from it: those that `DefaultSavePlanner` and `FileSystemWriter` of torch
2.13 make. Classes of torch 2.6 take them, too. Needs no torch. The path of the directory and random numbers, which
torch would record, are left out, so the bytes follow from the plan.

Format: `torch/distributed/checkpoint/metadata.py`; `_StorageInfo`, and `finish`, in `filesystem.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distconv.formats.dcp.blobs import Span
from distconv.formats.dcp.plan import DcpPlan, Whole
from distconv.formats.torch_zip.write_pickle import Call, Global, Instance, dumps
from distconv.tensors.virtual import Index

_MODULE = "torch.distributed.checkpoint.metadata"
_INDEX, _CHUNK = Global(_MODULE, "MetadataIndex"), Global(_MODULE, "ChunkStorageMetadata")
_TENSOR, _PROPERTIES = Global(_MODULE, "TensorStorageMetadata"), Global(_MODULE, "TensorProperties")
_BYTES = Global(_MODULE, "BytesStorageMetadata")
_PLACE = Global("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE = Global("torch", "Size")
_STRIDED = Call(Global("torch.serialization", "_get_layout"), ("torch.strided",))
_CONTIGUOUS = Call(Global(_MODULE, "_MEM_FORMAT_ENCODING"), (0,))
# `CURRENT_DCP_VERSION` of torch.
_FORMAT_VERSION = "1.0.0"


def metadata_bytes(plan: DcpPlan, spans: Mapping[str, Sequence[Span]]) -> bytes:
    """The content of `.metadata` for files whose blobs have these spans, by path."""
    return dumps(_metadata(plan, spans))


def _metadata(plan: DcpPlan, spans: Mapping[str, Sequence[Span]]) -> Instance:
    entries: dict[str, Instance] = {}
    chunks: dict[str, list[Instance]] = {}
    places: dict[Instance, Instance] = {}
    for file in plan.files:
        values = plan.values_in(file)
        for value, span in zip(values, spans[file.path], strict=False):
            for key in value.keys:
                entries[key] = Instance(_BYTES)
                places[Instance(_INDEX, {"fqn": key, "index": None})] = _place(file.path, span)
        for chunk, span in zip(plan.chunks(file), spans[file.path][len(values) :], strict=True):
            name = plan.full_name(chunk.whole)
            known = chunks.setdefault(name, [])
            index = Instance(_INDEX, {"fqn": name, "index": len(known), "offset": _size(chunk.offsets)})
            places[index] = _place(file.path, span)
            known.append(Instance(_CHUNK, {"offsets": _size(chunk.offsets), "sizes": _size(chunk.shape)}))
            entries.setdefault(name, _tensor(chunk.whole, known))
    state = {
        "state_dict_metadata": entries,
        "planner_data": _nested_names(plan),
        "storage_data": places,
        "storage_meta": Instance(
            Global(_MODULE, "StorageMeta"), {"checkpoint_id": None, "save_id": None, "load_id": None, "modules": []}
        ),
        "version": _FORMAT_VERSION,
    }
    return Instance(Global(_MODULE, "Metadata"), state)


def _place(path: str, span: Span) -> Instance:
    return Instance(_PLACE, {"relative_path": path, "offset": span[0], "length": span[1]})


def _tensor(whole: Whole, chunks: list[Instance]) -> Instance:
    """The entry of a tensor, given the pickled form of its chunks."""
    dtype = Global("torch", whole.dtype)
    # In the order of the class's own `__getstate__`; requires_grad and pin_memory are false.
    properties = Instance(_PROPERTIES, (dtype, _STRIDED, False, _CONTIGUOUS, False))
    return Instance(_TENSOR, {"properties": properties, "size": _size(whole.shape), "chunks": chunks})


def _nested_names(plan: DcpPlan) -> dict[str, tuple[str, ...]] | None:
    """Flat name → path in the nested state dict; `None` if it is flat."""
    if plan.state is None:
        return None
    names: dict[str, tuple[str, ...]] = {plan.full_name(each): (plan.state, each.name) for each in plan.tensors()}
    return names | {key: (key,) for value in plan.values for key in value.keys}


def _size(lengths: Index) -> Call:
    return Call(_SIZE, (tuple(lengths),))
