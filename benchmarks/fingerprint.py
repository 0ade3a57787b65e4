"""Print one digest of the content of a Megatron checkpoint directory.

    python benchmarks/fingerprint.py DIRECTORY

Two directories have the same fingerprint when they hold the same files with the same top-level keys, tensor names,
dtypes, shapes and bits, and the same tracker. How the files store them does not count: torch.save writes the same
tensors in more than one way. This module never compares with an expected result; the golden tests do that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import torch


def fingerprint(directory: Path) -> str:
    """Digest everything that a reader of the checkpoint gets to see."""
    digest = sha256((directory / "latest_checkpointed_iteration.txt").read_bytes())
    for path in sorted(directory.rglob("*.pt")):
        digest.update(str(path.relative_to(directory)).encode())
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for key, value in flatten(content):
            digest.update(key.encode())
            if isinstance(value, torch.Tensor):
                digest.update(f"{value.dtype} {list(value.shape)}".encode())
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            else:
                digest.update(repr(value).encode())
    return digest.hexdigest()


def flatten(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested dictionaries in the order of their names."""
    if isinstance(value, dict):
        for name in sorted(value):
            yield from flatten(value[name], f"{key}/{name}")
    else:
        yield key, value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Print one digest of the content of a Megatron checkpoint directory.")
    parser.add_argument("directory", type=Path)
    print(fingerprint(parser.parse_args(argv).directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
