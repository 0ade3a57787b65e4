"""Facts of the toy model, as rank 0 would have found them in a source of any format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distconv.formats.base import SourceFacts
from distconv.formats.dcp.source import DcpFacts
from distconv.formats.huggingface.source import Checkpoint, HuggingFaceFacts
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.model import Reference
from distconv.formats.torch_dist.source import TorchDistFacts
from distconv.planning.facts import Facts
from tests.unit import toy

KINDS: Mapping[type, str] = {
    HuggingFaceFacts: "hf",
    MegatronIndex: "megatron",
    DcpFacts: "dcp",
    TorchDistFacts: "torch_dist",
}
PUBLISHED = HuggingFaceFacts(model=Checkpoint(index=toy.index(), config=toy.config()), text=None)


def reference(**config: Any) -> Reference:
    """A reference that has nothing but a configuration, with some values changed."""
    return Reference(
        directory="/hf", config=toy.config(**config), is_adapter=False, index=None, shard_files=None, index_content=None
    )


def facts(source: SourceFacts = PUBLISHED, followed: Reference | None = None, **changes: Any) -> Facts:
    """The facts of a source, with some of them changed."""
    known: dict[str, Any] = {
        "kind": KINDS[type(source)],
        "source": source,
        "reference": followed,
        "model": "toy",
        "definition": toy.content(),
        "iteration": "release",
    }
    return Facts(**{**known, **changes})
