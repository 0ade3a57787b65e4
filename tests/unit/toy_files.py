"""The toy model on disk, and a stand-in for the layout of `.pt` files that needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from distconv.plan import Plan, make_plan

from distconv.balance import LayoutRequest, complete_layout
from distconv.dtypes import ITEM_SIZE
from distconv.source import SourceFile
from tests.unit import toy

# Where the data of a file starts that `lay_out` made.
START = 24


def planned(directory: Path, **request: Any) -> Plan:
    """The plan for the toy's elements, which are written to a file."""
    path = directory / "source"
    path.write_bytes(b"".join(array.astype("u2").tobytes() for array in toy.arrays().values()))
    file = SourceFile(str(path), path.stat().st_size)
    binding = toy.bound()
    parameters = [
        replace(each, sources=tuple(replace(source, file=file) for source in each.sources))
        for each in binding.parameters
    ]
    binding = replace(binding, parameters=tuple(parameters))
    return make_plan(binding, complete_layout(LayoutRequest(**request), binding, toy.definition()), "release")


def lay_out(
    path: Path, keys: Iterable[str], tensors: Iterable[tuple[str, str, str, tuple[int, ...]]], extra: Mapping[str, Any]
) -> dict[tuple[str, str], int]:
    """Tensors one after the other, without anything that says what they are."""
    assert extra == {"checkpoint_version": 3.0}
    offsets, end, known = {}, START, set(keys)
    for key, name, dtype, shape in tensors:
        assert key in known
        offsets[key, name] = end
        end += prod(shape) * ITEM_SIZE[dtype]
    path.write_bytes(bytes(end))
    return offsets


def expected(plan: Plan, path: str) -> bytes:
    """The tensors of a file as `lay_out` orders them, converted by hand."""
    contents = toy.converted(toy.arrays(), plan.layout)[path]
    (file,) = [each for each in plan.files if each.path == path]
    return b"".join(contents[entry.key][entry.name].astype("u2").tobytes() for entry in plan.entries(file))


def elements(array: np.ndarray) -> bytes:
    """An array of numbers as a file holds it."""
    return array.astype("u2").tobytes()
