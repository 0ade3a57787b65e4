"""Save Qwen2-VL as a DCP the plain way: the whole model in memory, then `dcp.save`. A yardstick, not a tool.

    python benchmarks/plain_saver.py SOURCE TARGET

Writes the same tensors, bit for bit, as distconv with `target_format=dcp naming=hf`. The time of `dcp.save` alone, with
the state dict read into memory, is printed, too. There is no process group.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed.checkpoint as dcp
from plain_converter import load


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Save Qwen2-VL as a DCP, the plain way.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    # Tensors that safetensors maps are read when they are touched; copies are in memory.
    tensors = {name: tensor.clone() for name, tensor in load(arguments.source).items()}
    loaded = time.perf_counter()
    writer = dcp.FileSystemWriter(arguments.target / "release", sync_files=False)
    dcp.save({"model": tensors, "checkpoint_version": 3.0}, storage_writer=writer, no_dist=True)
    (arguments.target / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")
    end = time.perf_counter()
    print(f"saved in {end - loaded:.3f} s\nconverted in {end - begin:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
