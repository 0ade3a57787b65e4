"""What is said of tensors whose model nobody names: how many there are of what, and which definitions know them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distconv.formats.base import Held
from distconv.models.library import Library
from distconv.planning.describe import _by_dtype, _resembling

LIBRARY = Library.of_package()
QWEN = [f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(12) for name in "qkvo"]


def held(*names: str) -> list[Held]:
    return [Held("file", name, "bfloat16", (3, 2)) for name in names]


def test_tensors_are_counted_by_element_type():
    found = [Held("a", "x", "bfloat16", (3, 2)), Held("b", "y", "float32", ()), Held("", "z", "bfloat16", (0, 4))]
    assert _by_dtype(found) == {
        "bfloat16": {"tensors": 2, "elements": 6, "bytes": 12},
        "float32": {"tensors": 1, "elements": 1, "bytes": 4},
    }


@pytest.mark.parametrize("front", ["", "module.", "base_model.model.", "model/"])
def test_definitions_are_known_by_names_whatever_is_in_front(front):
    assert "qwen2vl" in _resembling(held(*(front + name for name in QWEN)), LIBRARY)


def test_half_of_the_names_must_be_known():
    others = [f"other.{number}.{name}" for number in range(3) for name in ("a", "b", "c", "d", "e")]
    assert _resembling(held(), LIBRARY) == []
    assert _resembling(held(*others), LIBRARY) == []
    # Layers are told once.
    assert "qwen2vl" in _resembling(held(*QWEN, *others[:4]), LIBRARY)
    assert _resembling(held(*QWEN, *others), LIBRARY) == []


def test_definitions_of_ones_own_count_and_damaged_ones_do_not(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text(json.dumps({"defaults": ["qwen2vl", "_self_"]}))
    (tmp_path / "model" / "damaged.yaml").write_text("[")
    found = _resembling(held(*QWEN), Library.of_package(tmp_path))
    assert "own" in found
    assert "damaged" not in found
