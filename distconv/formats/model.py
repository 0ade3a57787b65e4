"""The model of a job: its definition, its configuration, and the published directory that a conversion follows.

Owns these records and how processes share them. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distconv.models.definition import Definition
from distconv.models.scaling import Scaling
from distconv.models.sizes import Sizes
from distconv.tensors.stored import SourceIndex

MODEL_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The published directory of the model that a source was trained from.

    `config`: its `config.json`, of an adapter its `adapter_config.json`. `index`: its tensors, `None` without weights.
    `shards`: the file of each tensor by name, `None` where neither weights nor an index tell. `index_content`: the
    parsed content of its index file. `side_files`: the files that are no weights, by path below the directory.
    """

    directory: str
    config: Mapping[str, Any]
    is_adapter: bool
    index: SourceIndex | None
    shards: Mapping[str, str] | None
    index_content: Mapping[str, Any] | None
    side_files: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """The shape of each tensor by name, `None` where only an index tells that it is there."""
        stored = {} if self.index is None else self.index.tensors
        return {name: stored[name].shape if name in stored else None for name in self.shards or ()}

    def sizes(self, definition: Definition) -> Sizes:
        """The sizes of a definition, by the configuration of the reference."""
        return Sizes(definition.sizes, self.config, f"{self.directory}/{MODEL_CONFIG}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        return {**vars(self), "index": None if self.index is None else self.index.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Reference:
        """The reference in the data of `to_json`."""
        index = data["index"]
        read = None if index is None else SourceIndex.from_json(index)
        return Reference(**{**data, "index": read, "side_files": tuple(data["side_files"])})


@dataclass(frozen=True, kw_only=True)
class Model:
    """The definition of a model, `None` where tensors keep their names; and the reference, `None` without one.

    `config` is the configuration of the model: the source's own, or the reference's; `config_path` names its file.
    `scaling` is that of its adapters, `None` where nothing says it.
    """

    definition: Definition | None
    reference: Reference | None
    config: Mapping[str, Any]
    config_path: str
    scaling: Scaling | None = None

    @property
    def defined(self) -> Definition:
        """The definition, for formats that cannot do without one."""
        assert self.definition is not None
        return self.definition

    @property
    def followed(self) -> Reference:
        """The reference, for sources that do not describe themselves."""
        assert self.reference is not None
        return self.reference

    @property
    def sizes(self) -> Sizes:
        """The sizes of the definition."""
        return Sizes(self.defined.sizes, self.config, self.config_path)
