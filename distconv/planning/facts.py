"""What planning starts from, as plain data that rank 0 found and shared with the other processes.

Owns the records and how they are shared. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distconv.formats.dcp.index import DcpIndex
from distconv.formats.megatron.index import MegatronIndex
from distconv.models.definition import Definition
from distconv.models.sizes import Sizes
from distconv.tensors.stored import SourceIndex

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


@dataclass(frozen=True, kw_only=True)
class DcpSource:
    """A DCP: its tensors by the names that a model definition or the reference knows, and which of the two it is.

    `prefix` is what training put in front of the names; `others` describes entries that are no tensors of the model.
    """

    index: DcpIndex
    naming: str
    prefix: str
    others: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing."""
        return {**vars(self), "index": self.index.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> DcpSource:
        """The source that `to_json` described."""
        return DcpSource(**{**data, "index": DcpIndex.from_json(data["index"]), "others": tuple(data["others"])})


Source = Checkpoint | MegatronIndex | DcpSource
_KINDS: Mapping[str, Any] = {"hf": Checkpoint, "megatron": MegatronIndex, "dcp": DcpSource}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What planning starts from: the checkpoints, and the name and content of the model definition, if there is one.

    `reference` is given where the source is no Hugging Face directory itself; `iteration` is that of the result.
    """

    source: Source
    text_source: Checkpoint | None
    reference: Reference | None
    model: str | None
    definition: Mapping[str, Any]
    iteration: str

    @property
    def kind(self) -> str:
        """The format of the source: hf, megatron or dcp."""
        return next(kind for kind, each in _KINDS.items() if isinstance(self.source, each))

    def sizes(self, definition: Definition | None) -> Sizes | None:
        """The sizes that a definition, if there is one, finds in the model's `config.json`."""
        model = self.source if isinstance(self.source, Checkpoint) else self.reference
        return None if definition is None or model is None else model.sizes(definition)

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing."""
        return {
            **vars(self),
            "kind": self.kind,
            **{
                key: None if value is None else value.to_json()
                for key, value in (
                    ("source", self.source), ("text_source", self.text_source), ("reference", self.reference)
                )
            },
        }  # fmt: skip

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Facts:
        """The facts that `to_json` described."""
        text_source, reference = data["text_source"], data["reference"]
        return Facts(
            source=_KINDS[data["kind"]].from_json(data["source"]),
            text_source=None if text_source is None else Checkpoint.from_json(text_source),
            reference=None if reference is None else Reference.from_json(reference),
            model=data["model"],
            definition=data["definition"],
            iteration=data["iteration"],
        )
