"""What is fuzzed: each reader of a file from strangers, as a function of the bytes of that file.

Owns how bytes become a file, whom it is read by, and the valid files that fuzzing starts from. A reader returns, or
raises `DistconvError`; all else is a finding. After a first byte that is not zero, the rest is the inner part of a file
whose frame is made to fit: no fuzzer guesses a checksum.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distconv.formats.dcp.index import locate, open_dcp
from distconv.formats.frame import write_frame
from distconv.formats.huggingface.directory import read_directory
from distconv.formats.huggingface.safetensors import read_header, safetensors_frame
from distconv.formats.huggingface.state_dict import read_state_dict
from distconv.formats.megatron.index import read_rank_file
from distconv.formats.provenance import PROVENANCE_NAME, read_provenance
from distconv.formats.torch_dist.index import index_parameters, open_torch_dist
from tests.faults.fuzz.texts import (
    JSON,
    WORDS,
    YAML,
    Text,
    definitions,
    dialects,
    read_definition,
    read_dialect,
    read_words,
    write_parent,
)
from tests.unit.dcp_files import Call, Draft, Name, Storage, archive, pickled, rows

# Zeros behind the header of a safetensors file, which its offsets may refer to.
_DATA = 256


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader: what reads a directory, the name of the file in it that is fuzzed, and its valid contents.

    `prepare` writes what else is in the directory. `frame` makes a file of its inner part; `inner`: valid ones. `text`:
    the grammar of that part, or of the file.
    """

    read: Callable[[Path], object]
    name: str
    seeds: Callable[[], Sequence[bytes]]
    prepare: Callable[[Path], object] = lambda _: None
    frame: Callable[[bytes], bytes] = bytes
    inner: Callable[[], Sequence[bytes]] = tuple
    text: Text | None = None

    def content(self, data: bytes) -> bytes:
        """The content of the file that these bytes of a fuzzer mean."""
        return data[1:] if data[:1] in (b"", b"\0") else self.frame(data[1:])

    def corpus(self) -> list[bytes]:
        """The bytes of a fuzzer that mean valid files."""
        return [*(b"\0" + each for each in self.seeds()), *(b"\1" + each for each in self.inner())]


def _tensor(shape: tuple[int, ...], dtype: str = "float32") -> Call:
    storage = Storage(dtype, int(np.prod(shape)))
    strides = tuple(int(np.prod(shape[dim + 1 :])) for dim in range(len(shape)))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, 0, shape, strides, False, {}))


def _rank_file() -> dict[str, Any]:
    weight = _tensor((4, 2))
    args = Call(Name("argparse", "Namespace"), (), {"tensor_model_parallel_size": 2, "num_layers": 2, "swiglu": True})
    model = {"decoder.layers.0.mlp.linear_fc1.weight": weight, "decoder.layers.0.mlp._extra_state": None}
    return {"model": model, "checkpoint_version": 3.0, "iteration": 7, "args": args}


def _zip(pickle: bytes) -> bytes:
    """A zip that torch could have written, with this pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("archive/data.pkl", pickle)
        opened.writestr("archive/byteorder", "little")
        opened.writestr("archive/data/0", bytes(64))
    return stream.getvalue()


def _state_dicts() -> list[Any]:
    return [
        {"a.weight": _tensor((4, 2)), "b": _tensor((3,), "bfloat16"), "version": 3},
        {"state_dict": {"a": _tensor((2, 2))}},
    ]


_HEADER = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
    "b.scale": {"dtype": "F8_E8M0", "shape": [], "data_offsets": [32, 33]},
    "c.bias": {"dtype": "BF16", "shape": [111], "data_offsets": [33, 255]},
    "empty": {"dtype": "I64", "shape": [0, 3], "data_offsets": [255, 255]},
    "last": {"dtype": "U8", "shape": [1, 1], "data_offsets": [255, 256]},
}


def _with_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(_DATA)


def _shards(directory: Path) -> None:
    for name, tensors in (("one.safetensors", ["a", "b"]), ("two.safetensors", ["c"])):
        write_frame(directory / name, safetensors_frame((each, "float32", (2, 2)) for each in tensors))


_INDEX = {
    "metadata": {"total_size": 48},
    "weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"},
}


def _dcp_draft() -> Draft:
    draft = Draft(others=["optimizer.step", "rng"])
    draft.put("model.a.weight", np.zeros((4, 2), np.float32), "float32", rows(2, 4))
    draft.put("model.b", np.zeros((2, 2, 3), np.float32), "float32", rows(1, 2, 3), order=(1, 0, 2))
    return draft


def _torch_dist_draft() -> Draft:
    draft = Draft(others=["rng_state/shard_0_1", "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_2"])
    layers = "decoder.layers."
    for key in (f"{layers}self_attention.linear_qkv.weight", f"{layers}mlp.linear_fc1.weight"):
        draft.put(key, np.zeros((2, 4, 2), np.float32), "float32", rows(2, 2, 3))
    draft.put("embedding.word_embeddings.weight", np.zeros((4, 2), np.float32), "float32", rows(1, 4))
    return draft


def _write_torch_dist(directory: Path) -> None:
    _torch_dist_draft().save(directory)
    (directory / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    (directory / "common.pt").write_bytes(archive(_common()))


def _common() -> dict[str, Any]:
    return {**{key: value for key, value in _rank_file().items() if key != "model"}, "content_metadata": {}, "rng": [1]}


def _read_dcp(directory: Path) -> object:
    return locate(open_dcp(directory, None), lambda _: True)


def _read_torch_dist(directory: Path) -> object:
    return index_parameters(open_torch_dist(directory, None))


_PROVENANCES = [
    {"model": "qwen2vl", "reference": "/ckpt/hf"},
    {"model": "qwen2vl", "reference": None, "adapters": {"alpha": 16, "rslora": True, "alphas": {"q": 8.0}}},
]


_PT = Target(
    read=lambda directory: read_rank_file(str(directory / "file.pt")),
    name="file.pt",
    seeds=lambda: [archive(_rank_file(), bytes(32))],
    frame=_zip,
    inner=lambda: [pickled(_rank_file(), protocol) for protocol in (2, 4)],
)
_METADATA = Target(
    read=_read_dcp,
    name=".metadata",
    prepare=lambda directory: _dcp_draft().save(directory),
    seeds=lambda: [pickled(_dcp_draft().metadata())],
)
TARGETS = {
    "safetensors": Target(
        read=lambda directory: read_header(directory / "file.safetensors"),
        name="file.safetensors",
        seeds=lambda: [_with_header(json.dumps(_HEADER).encode())],
        frame=_with_header,
        text=JSON,
        inner=lambda: [json.dumps(_HEADER, indent=indent).encode() for indent in (None, 1)],
    ),
    "index": Target(
        read=read_directory,
        name="model.safetensors.index.json",
        prepare=_shards,
        text=JSON,
        seeds=lambda: [json.dumps(_INDEX).encode()],
    ),
    "rank file": _PT,
    "state dict": replace(
        _PT,
        read=lambda directory: read_state_dict(directory / "file.pt"),
        seeds=lambda: [archive(each, bytes(32)) for each in _state_dicts()],
        inner=lambda: [pickled(each, 2) for each in _state_dicts()],
    ),
    "dcp metadata": _METADATA,
    "dcp chunks": replace(_METADATA, name="__0_0.distcp", seeds=lambda: [_dcp_draft().files["__0_0.distcp"]]),
    "torch_dist metadata": replace(
        _METADATA,
        read=_read_torch_dist,
        prepare=_write_torch_dist,
        seeds=lambda: [pickled(_torch_dist_draft().metadata())],
    ),
    "torch_dist common": Target(
        read=_read_torch_dist,
        name="common.pt",
        prepare=_write_torch_dist,
        seeds=lambda: [archive(_common())],
        frame=_zip,
        inner=lambda: [pickled(_common(), 2)],
    ),
    "provenance": Target(
        read=read_provenance,
        name=PROVENANCE_NAME,
        text=JSON,
        seeds=lambda: [json.dumps(each).encode() for each in _PROVENANCES],
    ),
    "definition": Target(
        read=read_definition, name="model/mine.yaml", prepare=write_parent, seeds=definitions, text=YAML
    ),
    "dialect": Target(
        read=read_dialect,
        name="dialect/mine.yaml",
        prepare=lambda directory: (directory / "dialect").mkdir(),
        seeds=dialects,
        text=YAML,
    ),
    "words": Target(read=read_words, name="words", seeds=lambda: [each.encode() for each in WORDS]),
}
