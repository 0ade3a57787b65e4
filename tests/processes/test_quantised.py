"""Quantised sources on several processes: the same bytes as on one, and memory that does not grow with them."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.checkpoints import hashes, load_case, overrides
from tests.processes.jobs import run, single, torchrun
from tests.processes.memory import SIZES, assert_alike, peak, shares_of_two, write_lookalike
from tests.quantised import FP8, int4, written

CASE = "qwen3vl_moe__ep2"


def test_several_processes_make_the_same_of_it(tmp_path):
    """Each reads the codes and the scales of what it makes."""
    case = load_case(CASE)
    source, plain = written(case, "fp8", tmp_path)
    options = [*overrides(case), "dtype=bfloat16", "io.fsync=false"]
    outcome = run(torchrun(2, *options, f"source={source}", "target=mm", "report=report.json"), tmp_path)
    assert outcome.status == 0, outcome.err
    outcome = run(single(*options, f"source={plain}", "target=expected"), tmp_path)
    assert outcome.status == 0, outcome.err

    found, expected = hashes(tmp_path / "mm"), hashes(tmp_path / "expected")
    assert {name for name in expected if name.endswith(".pt")}
    assert all(found[name] == digest for name, digest in expected.items() if name.endswith(".pt"))
    shares = json.loads((tmp_path / "report.json").read_text())["processes"]
    assert sum(share["bytes_read"] for share in shares) < 2 * (source / "model.safetensors").stat().st_size


@pytest.mark.parametrize("scheme", ["fp8", "int4"])
def test_memory_does_not_grow_with_the_checkpoint(scheme, tmp_path):
    """Codes of no data, and of thirty times what memory may grow by; cut and dequantised."""
    said = {"quantization_config": FP8 if scheme == "fp8" else int4(32)}
    peaks = []
    for size in SIZES:
        source = tmp_path / f"hf{size}"
        stored = write_lookalike(source, size, lambda name, shape: pieces(name, shape, scheme), said)
        fill_shapes(source / "model.safetensors", stored)
        options = [f"source={source}", f"target={tmp_path / 'out'}", "layout.tp=2", "dtype=bfloat16", "io.fsync=false"]
        peaks.append(peak(shares_of_two(tmp_path, *options)))
        shutil.rmtree(tmp_path / "out")
    assert_alike(*peaks)


def pieces(name, shape, scheme):
    if "layers." not in name or not name.endswith("proj.weight") or "visual" in name:
        return {name: ("bfloat16", shape)}
    rows, columns = shape
    if scheme == "fp8":
        return {
            name: ("float8_e4m3fn", shape),
            f"{name}_scale_inv": ("float32", [-(-rows // 128), -(-columns // 128)]),
        }
    return {
        f"{name}_packed": ("int32", [rows, -(-columns // 8)]),
        f"{name}_scale": ("bfloat16", [rows, -(-columns // 32)]),
        f"{name}_shape": ("int64", [2]),
    }


def fill_shapes(path, stored):
    """The data of tensors that say the shape of another one; all else is zeros."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        for name in stored:
            if name.endswith("_shape"):
                packed = stored[name.replace("_shape", "_packed")][1]
                columns = packed[1] * 8
                stream.seek(8 + length + header[name]["data_offsets"][0])
                for size in (packed[0], columns):
                    stream.write(size.to_bytes(8, "little"))
