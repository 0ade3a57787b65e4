"""Quantised sources on several processes: the same bytes as on one, and memory that does not grow with them."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks.synthetic import hugging_face_config, lookalike, qwen2vl_tensors
from tests.checkpoints import hashes, load_case, overrides, write_header
from tests.end_to_end.test_quantised import EXPERTS, written
from tests.processes.jobs import run, single, torchrun
from tests.quantised import FP8, int4


def test_several_processes_make_the_same_of_it(tmp_path):
    """Each reads the codes and the scales of what it makes."""
    case = load_case(EXPERTS)
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
    peaks = {}
    for size in (5 * 10**6, 3 * 10**8):
        dimensions = lookalike(size, tied=False)
        source = tmp_path / f"hf{size}"
        source.mkdir()
        stored = {}
        for name, shape in qwen2vl_tensors(dimensions).items():
            quantised = "layers." in name and name.endswith("proj.weight") and "visual" not in name
            stored |= pieces(name, list(shape), scheme) if quantised else {name: ("bfloat16", list(shape))}
        config = {**hugging_face_config(dimensions), "quantization_config": FP8 if scheme == "fp8" else int4(32)}
        (source / "config.json").write_text(json.dumps(config))
        write_header(source / "model.safetensors", stored)
        fill_shapes(source / "model.safetensors", stored)
        options = [f"source={source}", f"target={tmp_path / 'out'}", "report=report.json", "layout.tp=2"]
        options += ["dtype=bfloat16", "overwrite=true", "io.threads=1", "io.buffer_mib=1", "io.fsync=false"]
        outcome = run(torchrun(2, *options), tmp_path)
        assert outcome.status == 0, outcome.err
        shares = json.loads((tmp_path / "report.json").read_text())["processes"]
        peaks[size] = max(share["peak_bytes"] for share in shares)
        shutil.rmtree(tmp_path / "out")

    small, large = peaks.values()
    assert large - small < 10 * 1024**2


def pieces(name, shape, scheme):
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
