"""Quantised weights: vectors of other libraries, or of the formulas where those are wrong, through whole conversions.

Vectors (`quant/*.json`) were made with transformers, compressed-tensors and torch; what they say of partial blocks is
the formula's, since transformers derives the block from the number of scales.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import describe_dcp
from tests.golden.test_round_trip import tensors as stored
from tests.here import run_here
from tests.quantised import MXFP4, Piece, fp8, int4, write_quantised

VECTORS = Path(__file__).parent / "quant"
NAME = "model.layers.0.mlp.up_proj.weight"
PLAIN: tuple[str, Piece] = ("model.norm.weight", ("bfloat16", [4], bytes(range(8))))


def vectors(name: str) -> list[Any]:
    found = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
    return [pytest.param(each, id=f"{name}-{number}") for number, each in enumerate(found)]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def shake(text: str, count: int) -> np.ndarray:
    return np.frombuffer(hashlib.shake_128(text.encode()).digest(count), np.uint8).copy()


def fp8_pieces(vector: dict[str, Any]) -> tuple[bytes, bytes]:
    if "weight" in vector:
        return bytes.fromhex(vector["weight"]), bytes.fromhex(vector["scale_inv"])
    name = vector["weight_shake"]
    codes = shake(name, int(np.prod(vector["shape"])))
    codes[codes & 0x7F == 0x7F] ^= 1
    bits = shake(f"{name}.s", 4 * int(np.prod(vector["scale_shape"]))).view(np.uint32)
    scales = (bits & 0x007FFFFF) | 0x39000000
    assert (sha(codes.tobytes()), sha(scales.tobytes())) == (vector["weight_sha256"], vector["scale_sha256"])
    return codes.tobytes(), scales.tobytes()


def made_of(tensors: dict[str, Piece], said: dict[str, Any], directory: Path, dtype: str) -> bytes:
    """The bytes of the quantised tensor in a result, which is the same published and as a DCP."""
    source = write_quantised(directory / "source", dict([*tensors.items(), PLAIN]), said)
    options = {"source": str(source), "dtype": dtype}
    run_here(**options, target=str(directory / "hf"), target_format="hf")
    run_here(**options, target=str(directory / "dcp"), target_format="dcp", naming="hf")
    assert "quantization_config" not in json.loads((directory / "hf" / "config.json").read_text())
    base = next(iter(tensors)).removesuffix("_packed").removesuffix("_blocks")
    found = stored(directory / "hf" / "model.safetensors")
    assert set(found) == {base, PLAIN[0]}
    _, shape, data = found[base]
    described = describe_dcp(directory / "dcp" / "release")
    (held,) = [each for name, each in described.items() if name.endswith(base)]
    assert held == [dtype, shape, sha(data)], held
    return data


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("vector", vectors("fp8_block"))
def test_fp8_in_blocks(vector, dtype, tmp_path):
    codes, scales = fp8_pieces(vector)
    of_scales = "uint8" if "scale_dtype" in vector else "float32"
    tensors = {
        NAME: ("float8_e4m3fn", vector["shape"], codes),
        f"{NAME}_scale_inv": (of_scales, vector["scale_shape"], scales),
    }
    data = made_of(tensors, fp8(vector["weight_block_size"]), tmp_path, dtype)
    if "float32_values" in vector:
        expected = np.array([float(each) for each in vector["float32_values"]], np.float32)
        if dtype == "float32":
            found = np.frombuffer(data, np.float32)
            assert np.array_equal(found, expected, equal_nan=True)
            assert np.array_equal(np.signbit(found), [False, True, False, True, False, False])
        return
    if f"{dtype}_sha256" in vector:
        assert sha(data) == vector[f"{dtype}_sha256"]
    if dtype in vector:
        assert data.hex() == vector[dtype]


@pytest.mark.parametrize("vector", vectors("mxfp4"))
def test_mxfp4(vector, tmp_path):
    tensors = {
        "model.layers.0.mlp.experts.down_proj_blocks": (
            "uint8", vector["blocks_shape"], bytes.fromhex(vector["blocks"]),
        ),
        "model.layers.0.mlp.experts.down_proj_scales": (
            "uint8", vector["scales_shape"], bytes.fromhex(vector["scales"]),
        ),
    }  # fmt: skip
    data = made_of(tensors, MXFP4, tmp_path, "bfloat16")
    assert data.hex() == vector["bfloat16"]


@pytest.mark.parametrize("width", ["int64", "int32"])
@pytest.mark.parametrize("vector", vectors("compressed_int4"))
def test_int4_of_compressed_tensors(vector, width, tmp_path):
    shape = np.array(vector["weight_shape"], width).tobytes()
    tensors = {
        f"{NAME}_packed": ("int32", vector["weight_packed_shape"], bytes.fromhex(vector["weight_packed"])),
        f"{NAME}_scale": (
            vector["weight_scale_dtype"], vector["weight_scale_shape"], bytes.fromhex(vector["weight_scale"]),
        ),
        f"{NAME}_shape": (width, [2], shape),
    }  # fmt: skip
    data = made_of(tensors, int4(vector["group_size"]), tmp_path, vector["result_dtype"])
    assert data.hex() == vector["result"]
