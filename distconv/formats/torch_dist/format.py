"""Megatron-core's distributed checkpoints (`torch_dist`) as a format: one whole model, whatever the layout of training.

Owns their recognition, their words, and the way from bound parameters to a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.errors import counted
from distconv.formats.base import Evidence, Format, Opened, PlannedResult, Source
from distconv.formats.dcp.chunks import locate_chunks
from distconv.formats.element_types import CAST_OPTIONS, ElementTypes
from distconv.formats.foreign import is_of_core
from distconv.formats.iterations import ITERATION_PARTS, RELEASE, Place, iteration_directory, iteration_of
from distconv.formats.model import Model
from distconv.formats.takes import Takes, refusals_of_whole_tensors
from distconv.formats.torch_dist.arguments import arguments_of
from distconv.formats.torch_dist.common import COMMON_NAME
from distconv.formats.torch_dist.files import TorchDistFiles
from distconv.formats.torch_dist.index import TorchDistDirectory, open_torch_dist
from distconv.formats.torch_dist.kind import BACKEND
from distconv.formats.torch_dist.plan import make_torch_dist_plan
from distconv.formats.torch_dist.source import TorchDistFacts, TorchDistSource, read_torch_dist
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.layout.shards import cut_recipes
from distconv.layout.tied_head import resolve_head
from distconv.models.vocabulary import padded_rows, resize_vocabulary, resizing_of
from distconv.options import CommonOptions
from distconv.runtime.hand_out import HandOut


class TorchDist(Format[CommonOptions]):
    """Directories of `metadata.json`, `.metadata`, `.distcp` files and a common part."""

    name = BACKEND
    noun = BACKEND
    title = "a torch_dist checkpoint of Megatron-core"
    words = "Megatron-core's distributed checkpoint: any layout loads it, no `layout`"
    elsewhere = ("torchdist", "dist_checkpointing", "megatron_core", "megatron_bridge", "nemo")
    takes = Takes(
        source=frozenset({"reference", "fill_from_reference", "source_dialect"}),
        target=dict.fromkeys((*CAST_OPTIONS, "vocab_size", "vocab_multiple", "tied_head", "dialect"), ""),
        refusals=refusals_of_whole_tensors(name),
    )
    tasks = (locate_chunks,)
    holds_iterations = True
    readers_names = (*ITERATION_PARTS, COMMON_NAME)

    def evidence(self, place: Place) -> Evidence:
        """A `metadata.json` that names a backend."""
        return Evidence.HERE if is_of_core(place) else Evidence.NONE

    def open(self, options: CommonOptions, *, adapters: bool, hand_out: HandOut) -> Opened:  # noqa: ARG002
        """The metadata and the common part of an iteration."""
        opened = open_torch_dist(options.source, options.iteration)
        checkpoint = opened.checkpoint
        return Opened(
            directory=checkpoint.directory,
            iteration=_iteration(opened),
            read=lambda *_: read_torch_dist(opened, hand_out),
            held=checkpoint.held,
            notes=checkpoint.unread(),
        )

    def arguments_file(self, directory: Path) -> Path | None:
        """The common part, where it is a file."""
        here = directory if is_of_core(Place(directory)) else iteration_directory(directory, None)
        return here / COMMON_NAME if (here / COMMON_NAME).exists() else None

    def facts_from_json(self, data: Mapping[str, Any]) -> TorchDistFacts:
        """The facts in plain data."""
        return TorchDistFacts.from_json(data)

    def source(self, options: CommonOptions, facts: TorchDistFacts, model: Model) -> Source:
        """The source of a job."""
        return TorchDistSource(options, facts, model)

    def is_published(self, options: CommonOptions) -> bool:  # noqa: ARG002 - whatever the options
        """Never."""
        return False

    def plan(self, options: CommonOptions, source: Source, model: Model, iteration: str) -> PlannedResult:
        """The stacked parameters under the keys of a dialect."""
        parameters = source.parameters()
        rows = options.vocab_size
        if options.vocab_multiple is not None:
            rows = padded_rows(parameters, options.vocab_multiple)
        layout = complete_layout(Layout(), parameters, model.defined)
        binding = resize_vocabulary(parameters, rows)
        types = ElementTypes(options, model)
        binding = types.of_parameters(resolve_head(binding, model.defined, layout, options.tied_head))
        # Whole parameters, but proved as shards are: no element of a source is lost or doubled.
        cut_recipes((each.recipe for each in binding.parameters), layout)
        dialect = model.parameter_dialect(options.dialect)
        plan = make_torch_dist_plan(binding, dialect)
        arguments = arguments_of(model, binding, options.vocab_multiple)
        files = TorchDistFiles(plan, arguments, int(iteration) if iteration.isdecimal() else 0)
        notes = resizing_of(parameters, rows)
        return PlannedResult(plan=plan, files=files, notes=notes, casts=types.casts(), dialect=dialect.name)

    def source_words(self, report: Mapping[str, Any]) -> list[str]:
        """The modules of the model, and how it was built, where its keys tell."""
        names = report["source_names"]
        prefix = f" with the prefix {names['prefix']}" if names["prefix"] else ""
        built = [f"         built from the {names['spec']} spec"] if names["spec"] else []
        return [f"found    keys{prefix} of {', '.join(names['modules'])}", *built]

    def target_words(self, report: Mapping[str, Any]) -> list[str]:
        """Tensors and chunks, and one key as an example."""
        found = report[self.name]
        what = f"{counted(found['tensors'], 'tensor')} in {counted(found['chunks'], 'chunk')}"
        return [f"keys     {what}, dialect {found['dialect']}: {found['example']} …"]


def _iteration(opened: TorchDistDirectory) -> str:
    """The iteration: what the directory is named, or else what the common part says."""
    named = iteration_of(opened.checkpoint.directory.resolve())
    # A release says that it is of iteration 0.
    return named or (str(opened.common.iteration) if opened.common.iteration else RELEASE)
