"""Print one digest of the content of a checkpoint: Megatron directory, DCP, or Hugging Face directory.

    python benchmarks/fingerprint.py DIRECTORY

Two directories have the same fingerprint when they hold the same files with the same top-level keys, tensor names,
dtypes, shapes and bits, and the same tracker; of a DCP, whose files are its own affair, only the content counts; of a
Hugging Face directory also the JSON files, but for the record. How files store tensors does not count: torch writes the
same ones in more than one way. This module never compares with an expected result; the golden tests do that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict


def fingerprint(directory: Path) -> str:
    """Digest everything that a reader of the checkpoint gets to see."""
    digest = sha256(b"".join(path.read_bytes() for path in directory.glob("latest_checkpointed_iteration.txt")))
    for name, content in contents(directory):
        digest.update(name.encode())
        for key, value in flatten(content):
            digest.update(key.encode())
            if isinstance(value, torch.Tensor):
                digest.update(f"{value.dtype} {list(value.shape)}".encode())
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            else:
                digest.update(repr(value).encode())
    return digest.hexdigest()


def contents(directory: Path) -> Iterator[tuple[str, object]]:
    """Yield what can be loaded, with its name."""
    for path in sorted(directory.rglob(".metadata")):
        loaded: dict[str, Any] = {}
        _load_state_dict(
            loaded, storage_reader=FileSystemReader(path.parent), planner=_EmptyStateDictLoadPlanner(), no_dist=True
        )
        yield str(path.parent.relative_to(directory)), loaded
    for path in sorted(directory.rglob("*.pt")):
        # A torch_dist has the arguments of training in such a file.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        yield str(path.relative_to(directory)), loaded
    shards = sorted(directory.glob("*.safetensors"))
    for path in shards:
        yield path.name, load_file(path)
    # The record of a result says of what it was made.
    for path in sorted(set(directory.glob("*.json")) - {directory / "distconv.json"}) if shards else ():
        yield path.name, path.read_text(encoding="utf-8")


def flatten(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested dictionaries in the order of their names."""
    if isinstance(value, dict):
        for name in sorted(value):
            yield from flatten(value[name], f"{key}/{name}")
    else:
        yield key, value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Print one digest of the content of a checkpoint.")
    parser.add_argument("directory", type=Path)
    print(fingerprint(parser.parse_args(argv).directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
