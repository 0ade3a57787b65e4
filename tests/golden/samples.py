"""What training programs saved, and what each is as a published model: `torch_dist/`, by Megatron-core itself.

A case has `config.json` and `expected.json` of the published model (element type, shape and checksum by name), and
`how.json`. `td.tar.xz` is a torch_dist checkpoint of it, `mp.tar.xz` its rank directories; of the one that MindSpeed-MM
trained, `mp.json` tells the tensors of these.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from distconv.formats.dcp.metadata import read_metadata
from distconv.formats.megatron.index import read_megatron
from distconv.formats.torch_dist.keys import EXTRA_STATES, other_kind

SAMPLES = Path(__file__).parent / "torch_dist"
# The dialect that the ranks of a sample are in, where it is not the usual one.
DIALECTS = {
    "q3moe_16_grouped": "mcore_grouped",
    "te_q3moe_16_ep2": "mcore_te",
    "te_q3moe_19_ep2": "mcore_te",
    "te_qwen3_16_tp2": "mcore_te",
}
TRAINED = "qwen2vl_trained_tp2"


def cases(part: str) -> list[str]:
    """The cases that have `td` or `mp`."""
    return sorted(path.parent.name for path in SAMPLES.glob(f"*/{part}.tar.xz"))


def unpacked(case: str, part: str, directory: Path) -> Path:
    """The checkpoint `td` or `mp` of a case, in a directory of its own."""
    with tarfile.open(SAMPLES / case / f"{part}.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory / part


def reference(case: str, directory: Path) -> Path:
    """A published directory with the configuration of a case alone."""
    (directory / "config").mkdir()
    (directory / "config" / "config.json").write_bytes((SAMPLES / case / "config.json").read_bytes())
    return directory / "config"


def told(case: str, name: str) -> Any:
    """The content of `expected.json`, `how.json` or `mp.json` of a case."""
    return json.loads((SAMPLES / case / f"{name}.json").read_text())


def published(directory: Path) -> dict[str, Any]:
    """The tensors of a published model: element type, shape and checksum by name."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: described(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found


def held(directory: Path) -> dict[str, Any]:
    """The tensors of all ranks of a checkpoint, without extra states: element type, shape and checksum by place."""
    index = read_megatron(directory, None)
    found = {}
    for file in index.files:
        content = torch.load(file.file.path, map_location="cpu", weights_only=False)
        for key, name in file.tensors:
            found[f"{Path(file.file.path).parent.name}/{key}/{name}"] = described(content[key][name])
    return found


def stacked(directory: Path) -> tuple[dict[str, Any], set[str]]:
    """The tensors of the model in a torch_dist iteration, put together from their chunks, and the keys of the states.

    Described as `described` does it, by key.
    """
    metadata = read_metadata(directory / ".metadata")
    found = {}
    for key, entry in metadata.tensors.items():
        if other_kind(key) is None:
            tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
            for chunk in entry.chunks:
                (place,) = chunk.places
                blob = (directory / place.file).read_bytes()[place.offset : place.offset + place.length]
                box = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
                tensor[box] = torch.load(io.BytesIO(blob), weights_only=True)
            found[key] = described(tensor)
    return found, {key for key in metadata.blobs if other_kind(key) == EXTRA_STATES}


def described(tensor: torch.Tensor) -> dict[str, Any]:
    """Element type, shape and checksum of a tensor."""
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
