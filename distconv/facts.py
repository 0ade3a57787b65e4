"""What planning starts from, as plain data that rank 0 found and shared with the other processes.

Owns the records and how they are shared. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distconv.definition import Definition
from distconv.sizes import Sizes
from distconv.source import SourceIndex

MODEL_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One source directory: its tensors, and its `config.json`."""

    index: SourceIndex
    config: Mapping[str, Any]

    def sizes(self, definition: Definition) -> Sizes:
        """The sizes that a definition finds in this checkpoint's `config.json`."""
        return Sizes(definition.sizes, self.config, f"{self.index.directory}/{MODEL_CONFIG}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing."""
        return {"index": self.index.to_json(), "config": self.config}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint that `to_json` described."""
        return Checkpoint(index=SourceIndex.from_json(data["index"]), config=data["config"])


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What planning starts from: the checkpoints, and the name and content of the model definition, if there is one."""

    source: Checkpoint
    text_source: Checkpoint | None
    model: str | None
    definition: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing."""
        return {
            "source": self.source.to_json(),
            "text_source": None if self.text_source is None else self.text_source.to_json(),
            "model": self.model,
            "definition": self.definition,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Facts:
        """The facts that `to_json` described."""
        text_source = data["text_source"]
        return Facts(
            source=Checkpoint.from_json(data["source"]),
            text_source=None if text_source is None else Checkpoint.from_json(text_source),
            model=data["model"],
            definition=data["definition"],
        )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The Hugging Face directory that a conversion back follows.

    `config` is its `config.json` (of an adapter: its `adapter_config.json`). `index`: its tensors, if it has weights.
    `shards`: the file of each tensor, where the directory says it; `index_content`: what the file says that says it.
    """

    directory: str
    config: Mapping[str, Any]
    is_adapter: bool
    index: SourceIndex | None
    shards: Mapping[str, str] | None
    index_content: Mapping[str, Any] | None

    def sizes(self, definition: Definition) -> Sizes:
        """The sizes that a definition finds in its `config.json`."""
        return Sizes(definition.sizes, self.config, f"{self.directory}/{MODEL_CONFIG}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing."""
        return {**vars(self), "index": None if self.index is None else self.index.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Reference:
        """The reference that `to_json` described."""
        index = data["index"]
        return Reference(**{**data, "index": None if index is None else SourceIndex.from_json(index)})
