"""Memory that does not grow with a checkpoint: models of no data of two sizes, and what two processes take for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.synthetic import hugging_face_config, lookalike, qwen2vl_tensors
from tests.checkpoints import write_header
from tests.processes.jobs import run, torchrun

# The larger one has thirty times what memory may grow by.
SIZES = (5 * 10**6, 3 * 10**8)
GROWTH = 10 * 1024**2
Stored = dict[str, tuple[str, list[int]]]


def write_lookalike(
    directory: Path, size: int, pieces: Callable[[str, list[int]], Stored], more: Mapping[str, Any] | None = None
) -> Stored:
    """Write a published model of about so many bytes in bfloat16: what it stores for each tensor, all zeros.

    `more`: further fields of its configuration.
    """
    dimensions = lookalike(size, tied=False)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**hugging_face_config(dimensions), **(more or {})}))
    stored: Stored = {}
    for name, shape in qwen2vl_tensors(dimensions).items():
        stored |= pieces(name, list(shape))
    write_header(directory / "model.safetensors", stored)
    return stored


def as_type(dtype: str) -> Callable[[str, list[int]], Stored]:
    """One tensor of the type for each."""
    return lambda name, shape: {name: (dtype, shape)}


def shares_of_two(directory: Path, *options: str) -> list[dict[str, Any]]:
    """What two processes with small buffers report of themselves."""
    given = (*options, f"report={directory / 'report.json'}", "overwrite=true", "io.threads=1", "io.buffer_mib=1")
    outcome = run(torchrun(2, *given), directory)
    assert outcome.status == 0, outcome.err
    found: list[dict[str, Any]] = json.loads((directory / "report.json").read_text())["processes"]
    return found


def peak(shares: list[dict[str, Any]]) -> int:
    """The peak resident size of the larger process in bytes."""
    return max(share["peak_bytes"] for share in shares)


def assert_alike(small: int, large: int) -> None:
    """Check that the peak for the larger model is hardly more than for the smaller one."""
    assert large - small < GROWTH
