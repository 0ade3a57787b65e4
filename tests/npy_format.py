"""A format of one module: a directory of `.npy` files, one for each tensor under its published name.

It is the example of CONTRIBUTING.md: with a line in `formats/registry.py`, it is a source and a target.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from distconv.errors import InputError
from distconv.formats.base import (
    Evidence,
    FileFormat,
    Format,
    Held,
    Located,
    Opened,
    PlannedResult,
    Published,
    Source,
    holds_files,
)
from distconv.formats.element_types import CAST_OPTIONS, ElementTypes
from distconv.formats.frame import Frame
from distconv.formats.iterations import RELEASE, Place
from distconv.formats.model import Model
from distconv.formats.readers import Reader, ReadFile, reading_by
from distconv.formats.records import Entry, OutputFile, mismatch
from distconv.formats.select import check_taken_whole, selection
from distconv.formats.takes import Takes
from distconv.models.bind import bind
from distconv.models.parameters import Binding, Unconverted
from distconv.options import CommonOptions
from distconv.runtime.hand_out import HandOut
from distconv.runtime.identity import look_at, look_into
from distconv.runtime.regular_files import open_file
from distconv.tensors.stored import NamedTensor, SourceFile, SourceIndex, StoredTensor, as_stored

_SUFFIX = ".npy"
# The types that numpy has no name for are stored as bytes of their size; `V2` can only be bfloat16 here.
_CODES = MappingProxyType(
    {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "|V2", "int64": "<i8", "uint8": "|u1"}
)
_DTYPES = MappingProxyType({np.dtype(code): dtype for dtype, code in _CODES.items()})


class Npy(Format[CommonOptions]):
    """One file per tensor."""

    name = "npy"
    noun = "npy"
    title = "a directory of npy files"
    words = "one `.npy` file per tensor, under published names"
    takes = Takes(source=frozenset({"reference"}), target=dict.fromkeys(CAST_OPTIONS, ""))
    readers_names = (f"*{_SUFFIX}",)

    def evidence(self, place: Place) -> Evidence:
        """Files of this kind in it."""
        return Evidence.HERE if holds_files(place, f"*{_SUFFIX}") else Evidence.NONE

    def open(self, options: CommonOptions, *, adapters: bool, hand_out: HandOut) -> Opened:  # noqa: ARG002
        """The headers of all files."""
        tensors = {each.name: each for each in map(read_npy, sorted(options.source.glob(f"*{_SUFFIX}")))}
        facts = NpyFacts(index=SourceIndex(directory=str(options.source), tensors=tensors))
        return Opened(directory=options.source, iteration=RELEASE, read=lambda *_: facts, held=facts.held)

    def facts_from_json(self, data: Mapping[str, Any]) -> NpyFacts:
        """The index in plain data."""
        return NpyFacts(index=SourceIndex.from_json(data))

    def source(self, options: CommonOptions, facts: NpyFacts, model: Model) -> NpySource:
        """The source of a job."""
        return NpySource(options, facts, model)

    def is_published(self, options: CommonOptions) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def plan(self, options: CommonOptions, source: Source, model: Model, iteration: str) -> PlannedResult:  # noqa: ARG002
        """A file for each tensor that the source gives."""
        published, types = source.published(), ElementTypes(options, model)
        tensors = types.of_tensors(published.tensors)
        plan = NpyPlan({each.name + _SUFFIX: each for each in tensors}, published.left_out)
        return PlannedResult(plan=plan, files=NpyFiles(), casts=types.casts())

    def target_words(self, report: Mapping[str, Any]) -> list[str]:
        """The number of files."""
        return [f"npy      {report[self.name]['tensors']} tensors in as many files"]


@dataclass(frozen=True, kw_only=True)
class NpyFacts:
    """The tensors of a directory; their model is described by a reference."""

    index: SourceIndex

    @property
    def directory(self) -> str:
        """The directory."""
        return self.index.directory

    @property
    def config(self) -> None:
        """There is none."""

    @property
    def looked_at(self) -> Iterable[SourceFile]:
        """The files of the tensors."""
        return self.index.files

    def held(self) -> Iterator[Held]:
        """The tensors, each in a file of its name."""
        for each in self.index.tensors.values():
            yield Held(each.name + _SUFFIX, each.name, each.dtype, each.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing."""
        return self.index.to_json()


class NpySource(Source):
    """Published tensors, as they are."""

    def __init__(self, options: CommonOptions, facts: NpyFacts, model: Model) -> None:
        self._options, self._index, self._model = options, facts.index, model

    def published(self) -> Published:
        """The tensors in the spelling of the definition."""
        check_taken_whole(self._options)
        definition = self._model.defined
        stored = as_stored(self._index.tensors.values())
        tensors = tuple(replace(each, name=definition.spelled(each.name)) for each in stored)
        return Published(tensors=tensors, tied=definition.is_tied(self._model.sizes))

    def parameters(self) -> Binding:
        """The parameters that the rules of the definition make."""
        definition = self._model.defined
        return bind(definition, self._model.sizes, self._index, selection(self._options, definition))


class NpyPlan:
    """The tensors by the paths of their files."""

    def __init__(self, tensors: Mapping[str, NamedTensor], unconverted: tuple[Unconverted, ...]) -> None:
        self.unconverted = unconverted
        self._tensors = tensors
        self.files = tuple(
            OutputFile(path=path, nbytes=each.nbytes, order=(number,), batch=number)
            for number, (path, each) in enumerate(tensors.items())
        )

    def entries(self, file: OutputFile) -> Iterator[Entry]:
        """The one tensor of a file."""
        tensor = self._tensors[file.path]
        yield Entry(tensor.sources, tensor.tensor, tensor.name, key="", group=tensor.name)

    def summary(self) -> dict[str, Any]:
        """Their number."""
        return {"npy": {"tensors": len(self.files)}}


class NpyFiles(FileFormat):
    """A header, and the data."""

    def frame(self, file: OutputFile, entries: Sequence[Entry]) -> Frame:  # noqa: ARG002
        """The header."""
        (entry,) = entries
        header = {"descr": _CODES[entry.tensor.dtype], "fortran_order": False, "shape": entry.tensor.shape}
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
        return Frame(pieces=[(0, stream.getvalue())], holes=[start], nbytes=start + entry.tensor.nbytes)

    def reader(self) -> Reader:
        """Numpy itself."""
        return NpyReader()

    def locate(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Located:  # noqa: ARG002
        """Compare the header with the entry."""
        (entry,) = entries
        found = read_npy(path)
        wrong = mismatch(entry, found.dtype, found.shape)
        if wrong is not None:
            return Located(offsets={}, differences=[f"{path}: {entry.name} {wrong}"])
        return Located(offsets={(entry.key, entry.name): found.offset})


class NpyReader(Reader):
    """`numpy.load`."""

    name = "numpy.load"

    def open(self, directory: Path, file: OutputFile) -> ReadFile:
        """The one tensor of a file, mapped."""
        path = directory / file.path
        with reading_by(self.name, path):
            array = np.load(path, mmap_mode="r")
            key, form = ("", path.name.removesuffix(_SUFFIX)), (_DTYPES[array.dtype], array.shape)
            return ReadFile(forms={key: form}, data=lambda _: array.reshape(-1).view(np.uint8).data, is_mapped=True)


def read_npy(path: Path) -> StoredTensor:
    """The tensor of a file, from its header.

    Raises:
        InputError: the file is missing, damaged, or of an element type that is not converted.
    """
    try:
        with open_file(path) as stream:
            file = look_at(path, stream.fileno())
            np.lib.format.read_magic(stream)
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
            offset = stream.tell()
            file = look_into(file, stream.fileno(), [(0, offset)])
    except (OSError, ValueError, tokenize.TokenError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if in_columns or dtype not in _DTYPES:
        raise InputError(f"{path}: expected rows of {', '.join(_DTYPES.values())}, found {dtype}")
    return StoredTensor(path.name.removesuffix(_SUFFIX), _DTYPES[dtype], shape, file, offset)
