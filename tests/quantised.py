"""Quantised weights by their formulas, element by element, without distconv's arithmetic; and directories of some."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import tensor_bytes, write_safetensors

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True, "type": "int"},
            "targets": ["Linear"],
        }
    },
    "ignore": ["lm_head", "re:.*self_attn.*"],
}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
Piece = tuple[str, list[int], bytes]
Quantise = Callable[[str, list[int]], tuple[dict[str, Piece], np.ndarray]]


def fp8(block: Sequence[int]) -> dict[str, Any]:
    """The configuration of fp8 in blocks."""
    return {**FP8, "weight_block_size": list(block)}


def int4(group: int) -> dict[str, Any]:
    """The configuration of int4 in groups."""
    weights = {**INT4["config_groups"]["group_0"]["weights"], "group_size": group}
    return {**INT4, "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}}}


def e4m3(bits: int) -> float:
    """A number of float8_e4m3fn, by the definition of the format."""
    sign = -1.0 if bits & 128 else 1.0
    exponent, mantissa = bits >> 3 & 15, bits & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (2.0**-6 * mantissa / 8 if not exponent else 2.0 ** (exponent - 7) * (1 + mantissa / 8))


def of_fp8(codes: np.ndarray, scales: np.ndarray, block: Sequence[int]) -> np.ndarray:
    """float32 of codes [..., rows, columns] and float32 scales."""
    made = np.empty(codes.shape, np.float32)
    for at in np.ndindex(*codes.shape):
        *outer, row, column = at
        scale = scales[(*outer, row // block[0], column // block[1])]
        made[at] = np.float32(e4m3(int(codes[at]))) * np.float32(scale)
    return made


def of_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float64 [experts, groups * 32, rows] of blocks [experts, rows, groups, 16] and scales of one byte."""
    experts, rows, groups, _ = blocks.shape
    made = np.empty((experts, groups * 32, rows), np.float64)
    for expert, row, group, byte in np.ndindex(*blocks.shape):
        for half in (0, 1):
            code = int(blocks[expert, row, group, byte]) >> 4 * half & 15
            value = E2M1[code & 7] * 2.0 ** (int(scales[expert, row, group]) - 127)
            made[expert, group * 32 + byte * 2 + half, row] = -value if code & 8 else value
    return made


def of_int4(packed: np.ndarray, scales: np.ndarray, columns: int, group: int) -> np.ndarray:
    """float64, not rounded, of words [rows, ceil(columns / 8)] and float scales."""
    made = np.empty((packed.shape[0], columns), np.float64)
    for row, column in np.ndindex(*made.shape):
        code = int(packed[row, column // 8].view(np.uint32)) >> 4 * (column % 8) & 15
        made[row, column] = (code - 8) * float(scales[row, column // group])
    return made


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of bfloat16, rounded to nearest and halves to even; values are no NaN, and float32 holds them."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bits of bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_quantised(
    directory: Path, tensors: Mapping[str, Piece], said: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Path:
    """A Hugging Face directory of a single file, whose configuration says how it is quantised."""
    directory.mkdir(parents=True)
    write_safetensors(directory / "model.safetensors", tensors)
    whole = {"torch_dtype": "bfloat16", **(config or {"model_type": "unheard_of"}), "quantization_config": dict(said)}
    (directory / "config.json").write_text(json.dumps(whole))
    return directory


def numbers(name: str, shape: list[int]) -> np.ndarray:
    """float32 from about 1/256 to 1, of both signs."""
    bits = np.frombuffer(tensor_bytes(name, "int32", shape), np.uint32)
    return ((bits & 0x83FFFFFF) | 0x3C000000).view(np.float32).reshape(shape)


def as_fp8(name: str, shape: list[int]) -> tuple[dict[str, Piece], np.ndarray]:
    codes = np.frombuffer(tensor_bytes(name, "uint8", shape), np.uint8).reshape(shape).copy()
    codes[codes & 0x7F == 0x7F] ^= 1
    *outer, rows, columns = shape
    of_scales = [*outer, -(-rows // 5), -(-columns // 3)]
    scales = numbers(f"{name}.scale", of_scales)
    pieces = {
        name: ("float8_e4m3fn", shape, codes.tobytes()),
        f"{name}_scale_inv": ("float32", of_scales, scales.tobytes()),
    }
    return pieces, as_bfloat16(of_fp8(codes, scales, (5, 3)))


def as_int4(name: str, shape: list[int]) -> tuple[dict[str, Piece], np.ndarray]:
    rows, columns = shape
    words = [rows, -(-columns // 8)]
    of_scales = [rows, -(-columns // 4)]
    packed = np.frombuffer(tensor_bytes(name, "int32", words), np.int32).reshape(words)
    scales = as_bfloat16(numbers(f"{name}.scale", of_scales))
    pieces = {
        f"{name}_packed": ("int32", words, packed.tobytes()),
        f"{name}_scale": ("bfloat16", of_scales, scales.tobytes()),
        f"{name}_shape": ("int64", [2], np.array(shape, np.int64).tobytes()),
    }
    return pieces, as_bfloat16(of_int4(packed, from_bfloat16(scales), columns, 4))


SCHEMES: Mapping[str, tuple[Quantise, dict[str, Any]]] = {"fp8": (as_fp8, fp8([5, 3])), "int4": (as_int4, int4(4))}


def written(case: Mapping[str, Any], scheme: str, directory: Path) -> tuple[Path, Path]:
    """A model whose language layers are quantised, and the same that it stands for."""
    quantise, said = SCHEMES[scheme]
    held: dict[str, Piece] = {}
    plain: dict[str, Piece] = {}
    for name, (dtype, shape, _) in case["source_tensors"].items():
        experts = name.endswith(("gate_up_proj", "experts.down_proj")) and scheme == "fp8"
        if (
            "layers." in name
            and "visual" not in name
            and (experts or (name.endswith("proj.weight") and len(shape) == 2))
        ):
            pieces, values = quantise(name, shape)
            held |= pieces
            plain[name] = ("bfloat16", shape, values.tobytes())
        else:
            # No NaN, which a cast changes.
            data = bytearray(tensor_bytes(name, dtype, shape))
            data[1::2] = bytes(byte & 0xBF for byte in data[1::2])
            held[name] = plain[name] = (dtype, shape, bytes(data))
    config = case["hf_config"]
    write_quantised(directory / "quantised", held, said, config)
    (directory / "plain").mkdir()
    write_safetensors(directory / "plain" / "model.safetensors", plain)
    (directory / "plain" / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **config}))
    return directory / "quantised", directory / "plain"
