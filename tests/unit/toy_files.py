"""The toy model on disk, and a stand-in for a format of files that needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from distconv.formats.frame import Frame
from distconv.formats.megatron.files import MegatronFiles
from distconv.formats.megatron.plan import MegatronPlan, make_plan
from distconv.formats.records import Entry, OutputFile
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.tensors.stored import SourceFile
from tests.unit import toy

# Where the data of a file starts that `Unmarked` laid out.
START = 24


def planned(directory: Path, **request: Any) -> MegatronPlan:
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
    return make_plan(binding, complete_layout(Layout(**request), binding, toy.definition()))


class Unmarked(MegatronFiles):
    """Files of tensors one after the other, without anything that says what they are."""

    def frame(self, file: OutputFile, entries: Sequence[Entry]) -> Frame:  # noqa: ARG002 - of the interface
        """Nothing but a few zeros."""
        ends = list(accumulate((entry.tensor.nbytes for entry in entries), initial=START))
        return Frame(pieces=[(0, bytes(START))], holes=ends[:-1], nbytes=ends[-1])


def expected(plan: MegatronPlan, path: str) -> bytes:
    """The tensors of a file as `Unmarked` orders them, converted by hand."""
    contents = toy.converted(toy.arrays(), plan.layout)[path]
    (file,) = [each for each in plan.files if each.path == path]
    return b"".join(contents[entry.key][entry.name].astype("u2").tobytes() for entry in plan.entries(file))


def elements(array: np.ndarray) -> bytes:
    """An array of numbers as a file holds it."""
    return array.astype("u2").tobytes()
