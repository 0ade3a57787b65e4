"""Megatron-core's distributed checkpoints (`torch_dist`) as a format of sources.

Owns their recognition and their words. How they are read, the modules beside this one know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.formats.base import Evidence, Opened, Source, SourceFormat, Takes
from distconv.formats.dcp.chunks import locate_chunks
from distconv.formats.foreign import KIND_NAME, has_backend
from distconv.formats.iterations import RELEASE, iteration_of, iterations_in
from distconv.formats.model import Model
from distconv.formats.torch_dist.index import TorchDistDirectory, open_torch_dist
from distconv.formats.torch_dist.kind import BACKEND
from distconv.formats.torch_dist.source import TorchDistFacts, TorchDistSource, read_torch_dist
from distconv.options import CommonOptions
from distconv.runtime.hand_out import HandOut


class TorchDist(SourceFormat[CommonOptions]):
    """Directories of `metadata.json`, `.metadata`, `.distcp` files and a common part."""

    name = BACKEND
    noun = BACKEND
    title = "a torch_dist checkpoint of Megatron-core"
    takes = Takes(source=frozenset({"reference", "fill_from_reference", "source_dialect"}))
    tasks = (locate_chunks,)
    holds_iterations = True

    def evidence(self, directory: Path) -> Evidence:
        """A `metadata.json` that names a backend, in the directory or in one of its iterations."""
        if has_backend(directory / KIND_NAME):
            return Evidence.HERE
        below = any(has_backend(each / KIND_NAME) for each in iterations_in(directory))
        return Evidence.BELOW if below else Evidence.NONE

    def open(self, options: CommonOptions, *, adapters: bool, hand_out: HandOut) -> Opened:  # noqa: ARG002
        """The metadata and the common part of an iteration."""
        opened = open_torch_dist(options.source, options.iteration)
        checkpoint = opened.checkpoint
        return Opened(
            directory=checkpoint.directory,
            iteration=_iteration(opened),
            read=lambda _: read_torch_dist(opened, hand_out),
            held=checkpoint.held,
            notes=checkpoint.unread(),
        )

    def facts_from_json(self, data: Mapping[str, Any]) -> TorchDistFacts:
        """The facts in plain data."""
        return TorchDistFacts.from_json(data)

    def source(self, options: CommonOptions, facts: TorchDistFacts, model: Model) -> Source:
        """The source of a job."""
        return TorchDistSource(options, facts, model)

    def source_words(self, report: Mapping[str, Any]) -> list[str]:
        """The dialect of the source."""
        return [f"found    parameters of all layers in one, wrapped as in {report['source_names']['dialect']}"]


def _iteration(opened: TorchDistDirectory) -> str:
    """The iteration: what the directory is named, or else what the common part says."""
    named = iteration_of(opened.checkpoint.directory.resolve())
    return named or (str(opened.common.iteration) if opened.common.iteration else RELEASE)
