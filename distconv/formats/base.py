"""The interfaces of a checkpoint format: recognition, reading, planning, writing and checking.

Owns the interfaces and their records. A format is a folder that implements `Format`, and a line in `registry`; no other
module asks for the format of a source or a result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from distconv.formats.element_types import Casts
from distconv.formats.frame import Frame
from distconv.formats.iterations import Place
from distconv.formats.model import Model
from distconv.formats.readers import Reader
from distconv.formats.records import Entry, Offsets, OutputFile, Plan
from distconv.formats.takes import Takes
from distconv.layout.layout import CompleteLayout
from distconv.models.parameters import Binding, Unconverted
from distconv.runtime.hand_out import HandOut, Task
from distconv.tensors.replicas import Replica
from distconv.tensors.stored import NamedTensor, SourceFile


class Evidence(IntEnum):
    """The strength of the evidence that a directory is a checkpoint of a format; the strongest decides."""

    NONE = 0
    ITERATIONS = 1  # directories with names of iterations, without files of any format
    CONFIGURATION = 2  # the configuration of a model
    BELOW = 3  # files of the format in an iteration in the directory
    HERE = 4  # files of the format in the directory


@dataclass(frozen=True, kw_only=True)
class Published:
    """Tensors under published names, in a definition's spelling; what has no place among them; whether head is tied.

    Experts may be in any form that a release publishes them in (`models.experts`); who needs one asks for it.
    `bound`: they were restored from parameters, so the definition has been applied to them. `rows`: the rows of the
    vocabulary, where they are others than the configuration of the model says.
    """

    tensors: tuple[NamedTensor, ...]
    left_out: tuple[Unconverted, ...] = ()
    tied: bool = False
    bound: bool = False
    rows: int | None = None


class SourceFacts(Protocol):
    """The records read from a source, as processes share them."""

    @property
    def directory(self) -> str:
        """The directory of the files: of the chosen iteration, if the source has iterations."""

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The source's own configuration of the model, `None` if a reference has it."""

    @property
    def looked_at(self) -> Iterable[SourceFile]:
        """The files that were looked at: those of tensors, and those that say what these are."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Format.facts_from_json` reads it."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in the files of a source; `file` is empty for a tensor stored in several files."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source with located files, before its model is known.

    `directory`: the directory of the files, of the chosen iteration if there are several; `iteration`: its name, empty
    without iterations. `config`: the source's own configuration, `None` if a reference has it. `adapters`: the source
    holds adapters alone, and `config` is their configuration. `read` maps the model, and a `source_dialect` if one is
    given or recorded, to the facts; it raises `InputError` for files that are damaged or not of this model. `held`
    lists the tensors in the files, whatever the model; `summary` has further facts of the files as plain data, `notes`
    sentences about what is not read. `names_suffice`: it may be read without a definition, though without `config`.
    """

    directory: Path
    iteration: str
    read: Callable[[Model, str | None], SourceFacts]
    held: Callable[[], Iterable[Held]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    adapters: bool = False
    notes: tuple[str, ...] = ()
    names_suffice: bool = False


class Source(ABC):
    """A source bound to its model.

    `replicas`: stored tensors that must equal others, compared before anything is written. `notes`: sentences about the
    source for the report.
    """

    replicas: tuple[Replica, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def parameters(self) -> Binding:
        """The Megatron-side parameters.

        Raises:
            InputError: every tensor that is missing, unknown, or of a wrong shape or element type.
        """

    @abstractmethod
    def published(self) -> Published:
        """The tensors under published names.

        Raises:
            InputError: as `parameters`.
        """

    def summary(self) -> dict[str, Any]:
        """The source's part of the report, as plain data: its detected layout, naming and the like."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Located:
    """What an existing file holds that is not framed as its plan says.

    `offsets`: where the data is of the tensors that are as expected; `differences`: in words, what is not. `foreign`:
    another program wrote it, so that its frame proves nothing.
    """

    offsets: Offsets
    differences: list[str] = field(default_factory=list)
    foreign: bool = False


class FileFormat(ABC):
    """The files of one result: those of tensors, and those beside them, of which there may be none."""

    @abstractmethod
    def frame(self, file: OutputFile, entries: Sequence[Entry]) -> Frame:
        """All of a file but its tensor data, with a hole for the data of each entry."""

    @abstractmethod
    def locate(self, path: Path, file: OutputFile, entries: Sequence[Entry]) -> Located:
        """Compare the structure of an existing file, which has another frame, with that of its plan.

        Raises:
            InputError: it is damaged.
        """

    @abstractmethod
    def reader(self) -> Reader:
        """The reader that programs use; `InputError` where it is not installed."""

    def check_inputs(self) -> None:  # noqa: B027 - for others
        """Raise `InputError` unless everything can be read that `beside` copies."""

    def beside(self) -> Mapping[str, bytes | SourceFile]:
        """The files beside the tensors by path in the result: their content, or the file of which each is a copy."""
        return {}

    def locate_beside(self, directory: Path, name: str) -> Located:  # noqa: ARG002 - for others
        """Compare an existing one of those files, which has other bytes, with what it should say.

        Raises:
            InputError: it is damaged.
        """
        return Located(offsets={})


@dataclass(frozen=True, kw_only=True)
class PlannedResult:
    """The plan of a result, the format of its files, sentences about the result for the report, and what is cast.

    `dialect`: the `source_dialect` that tells its names when it is a source, if one does; `layout`: of a result that is
    cut by ranks, how.
    """

    plan: Plan
    files: FileFormat
    notes: tuple[str, ...] = ()
    casts: Casts = field(default_factory=Casts)
    dialect: str | None = None
    layout: CompleteLayout | None = None


def holds_files(place: Place, *patterns: str) -> bool:
    """Whether a directory has files whose names match one of `patterns`."""
    return any(fnmatchcase(name, pattern) for name in place.names for pattern in patterns)


_Options_contra = TypeVar("_Options_contra", contravariant=True)


class Format(ABC, Generic[_Options_contra]):
    """A format of checkpoints, as a source and as a result.

    `name`: the value of `target_format`. `noun` and `title`: for messages ("DCP", "a Megatron checkpoint"). `words`:
    the description of a result in the help. `elsewhere`: what others call it, in lower case with `_`. `tasks`: the
    functions that reading hands out. `needs_config`: a result needs the configuration of the model, also where its
    tensors keep their names. `holds_iterations`: a result is an iteration in the target directory, with a tracker;
    otherwise it is that directory itself, and an existing one has at least one of the files `marks`. `readers_names`:
    patterns of names that readers take for a part, whoever made it. `shares_files`: several processes may write a file
    of a result, since none of its tensors is made from one read with those of other files.
    """

    name: str
    noun: str
    title: str
    words: str
    elsewhere: tuple[str, ...] = ()
    takes: Takes = Takes()
    tasks: tuple[Task, ...] = ()
    needs_config: bool = True
    holds_iterations: bool = False
    marks: tuple[str, ...] = ()
    readers_names: tuple[str, ...]
    shares_files: bool = False

    @abstractmethod
    def evidence(self, place: Place) -> Evidence:
        """The evidence that a directory itself is a checkpoint of this format; that of iterations follows from it."""

    @abstractmethod
    def open(self, options: _Options_contra, *, adapters: bool, hand_out: HandOut) -> Opened:
        """Locate the files of the source; `adapters`: the chosen model definition converts adapters alone.

        Raises:
            InputError: no such checkpoint, or a damaged one.
        """

    @abstractmethod
    def facts_from_json(self, data: Mapping[str, Any]) -> SourceFacts:
        """The facts described by `SourceFacts.to_json`."""

    @abstractmethod
    def source(self, options: _Options_contra, facts: Any, model: Model) -> Source:
        """The source with these facts, bound to the model.

        Raises:
            InputError: every contradiction between facts and model.
        """

    @abstractmethod
    def is_published(self, options: _Options_contra) -> bool:
        """Whether a result has published names; otherwise it has names of Megatron-side parameters."""

    @abstractmethod
    def plan(self, options: _Options_contra, source: Source, model: Model, iteration: str) -> PlannedResult:
        """Plan the result of a source; `iteration`: the one that it is, of a format that has iterations.

        Raises:
            InputError: all problems of source, options or layout, one kind at a time.
        """

    def arguments_file(self, directory: Path) -> Path | None:  # noqa: ARG002 - for others
        """The file of a checkpoint with the arguments of the training that saved it; `None` if the format has none.

        Raises:
            InputError: no such iteration.
        """
        return None

    def source_words(self, report: Mapping[str, Any]) -> list[str]:  # noqa: ARG002 - for others
        """`Source.summary` in words, as lines of the plan's text."""
        return []

    def target_words(self, report: Mapping[str, Any]) -> list[str]:  # noqa: ARG002 - for others
        """`Plan.summary` in words, as lines of the plan's text."""
        return []
