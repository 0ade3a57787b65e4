"""Element types under torch's names: their sizes in bytes, their codes in safetensors headers, those of weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ITEM_SIZE: Mapping[str, int] = MappingProxyType(
    {
        "float64": 8,
        "float32": 4,
        "float16": 2,
        "bfloat16": 2,
        "float8_e4m3fn": 1,
        "float8_e5m2": 1,
        "float8_e8m0fnu": 1,
        "int64": 8,
        "int32": 4,
        "int16": 2,
        "int8": 1,
        "uint8": 1,
        "bool": 1,
    }
)

# The types of weights that are not quantised: those between which elements can be cast.
FLOATING = ("float64", "float32", "float16", "bfloat16")

# The types of scales that are an exponent of one byte alone.
SCALE_BYTES = ("uint8", "float8_e8m0fnu")

# https://github.com/huggingface/safetensors, README "Format" and safetensors/src/tensor.rs
SAFETENSORS_CODE: Mapping[str, str] = MappingProxyType(
    {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
    }
)
