"""The model of a job: its definition, its configuration, and its reference.

Owns these records and the form in which processes share them. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distconv.errors import InputError
from distconv.models.definition import Definition
from distconv.models.parameter_dialect import ParameterDialect, ParameterDialects
from distconv.models.scaling import Scaling
from distconv.models.sizes import Sizes
from distconv.models.spellings import Spellings
from distconv.tensors.stored import SourceFile, SourceIndex

MODEL_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The published directory of the model that a source was trained from.

    `config`: its `config.json`, of an adapter its `adapter_config.json`. `index`: its tensors, `None` without weights.
    `shards`: the file of each tensor by name, `None` where neither weights nor an index tell. `index_content`: the
    parsed content of its index file. `side_files`: the files that are no weights, by path below the directory.
    `described_by`: the files of `config` and of the index; `index_file`: the latter. `notes`: what is in the directory
    and not used, in sentences for the report. `quantised`: so are weights, and of what a result has instead neither
    sizes nor files are known.
    """

    directory: str
    config: Mapping[str, Any]
    is_adapter: bool
    index: SourceIndex | None
    shard_files: Mapping[str, str] | None
    index_content: Mapping[str, Any] | None
    side_files: Mapping[str, SourceFile] = field(default_factory=dict)
    described_by: tuple[SourceFile, ...] = ()
    index_file: SourceFile | None = None
    notes: tuple[str, ...] = ()
    quantised: bool = False

    @property
    def looked_at(self) -> Iterator[SourceFile]:
        """The files that were looked at: of weights, of the configuration, and of the index."""
        yield from self.described_by
        yield from () if self.index is None else self.index.files

    @property
    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """Tensor name → shape; `None` for a tensor that only the index file names."""
        stored = {} if self.index is None else self.index.tensors
        return {name: stored[name].published_shape if name in stored else None for name in self.shard_files or ()}

    def sizes(self, definition: Definition) -> Sizes:
        """The sizes of a definition, from the configuration of the reference."""
        return Sizes(definition.sizes, self.config, f"{self.directory}/{MODEL_CONFIG}")

    def to_json(self) -> dict[str, Any]:
        """The reference as plain JSON data, to be shared with other processes."""
        return {
            **vars(self),
            "index": None if self.index is None else self.index.to_json(),
            "side_files": {name: file.to_json() for name, file in self.side_files.items()},
            "described_by": [file.to_json() for file in self.described_by],
            "index_file": None if self.index_file is None else self.index_file.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Reference:
        """The reference described by `to_json`."""
        index, index_file = data["index"], data["index_file"]
        read = {
            "index": None if index is None else SourceIndex.from_json(index),
            "side_files": {name: SourceFile.from_json(file) for name, file in data["side_files"].items()},
            "described_by": tuple(map(SourceFile.from_json, data["described_by"])),
            "index_file": None if index_file is None else SourceFile.from_json(index_file),
            "notes": tuple(data["notes"]),
        }
        return Reference(**{**data, **read})


@dataclass(frozen=True, kw_only=True)
class Model:
    """The definition of a model, `None` if tensors keep their names, and its reference, `None` if it has none.

    `config` is the configuration of the model: the source's own, or the reference's; `config_path` names its file.
    `scaling` is that of its adapters, `None` where nothing says it; `spellings` are those of its published tensors, and
    `parameter_dialects` those of its parameters.
    `trained_rows`: training has trained rows of the vocabulary beyond those of the configuration.
    """

    definition: Definition | None
    reference: Reference | None
    config: Mapping[str, Any]
    config_path: str
    scaling: Scaling | None = None
    spellings: Spellings = field(default_factory=Spellings)
    parameter_dialects: ParameterDialects = field(default_factory=ParameterDialects)
    trained_rows: bool = False

    def spelled(self, name: str) -> str:
        """A published name in the spelling of the definition, where there is one."""
        return name if self.definition is None else self.definition.spelled(name)

    def parameter_dialect(self, name: str | None) -> ParameterDialect:
        """The dialect of parameters by the value of the option `dialect`, or else the usual one of the model.

        Raises:
            InputError: there is no such dialect, or it is one of published names.
        """
        if name in self.spellings.dialects:
            raise InputError(
                f"dialect={name}: names published tensors; give target_format=dcp and naming=hf, or another dialect"
            )
        key = "dialect" if name else f"model definition {self.defined.name}: dialect"
        return self.parameter_dialects.chosen(name or self.defined.dialect, key)

    @property
    def defined(self) -> Definition:
        """The definition; only for formats that require one."""
        assert self.definition is not None
        return self.definition

    @property
    def followed(self) -> Reference:
        """The reference; only for sources without a configuration of their own."""
        assert self.reference is not None
        return self.reference

    @property
    def sizes(self) -> Sizes:
        """The sizes of the definition, from the configuration."""
        return Sizes(self.defined.sizes, self.config, self.config_path)
