"""Megatron checkpoints as a format: recognised by their rank directories, written under a layout.

Owns the way from bound parameters to the rank files of a layout, and the layout in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distconv.formats.base import Evidence, Format, Opened, PlannedResult, Source, holds_files
from distconv.formats.element_types import CAST_OPTIONS, ElementTypes
from distconv.formats.iterations import ITERATION_PARTS, Place
from distconv.formats.megatron.directory import RANK_PREFIX, find_ranks, notes_of_others
from distconv.formats.megatron.files import MegatronFiles
from distconv.formats.megatron.index import MegatronIndex, read_megatron, read_rank_file
from distconv.formats.megatron.plan import make_plan
from distconv.formats.megatron.source import MegatronSource
from distconv.formats.model import Model
from distconv.formats.takes import Takes
from distconv.layout.balance import complete_layout
from distconv.layout.layout import shown_stages
from distconv.layout.predicting import with_embedding
from distconv.layout.tied_head import resolve_head
from distconv.layout.training import check_training, text_on_first_stage
from distconv.models.vocabulary import padded_rows, resize_vocabulary, resizing_of
from distconv.options import CommonOptions
from distconv.runtime.hand_out import HandOut
from distconv.words import binary, table


class Megatron(Format[CommonOptions]):
    """Megatron checkpoints: one file per tensor, pipeline and expert parallel rank."""

    name = "megatron"
    noun = "Megatron"
    title = "a Megatron checkpoint"
    words = "`mp_rank_*` directories, cut by ranks"
    elsewhere = ("megatron_lm", "mcore", "mm", "mindspeed", "mindspeed_mm", "mindspeed_llm", "mp_rank", "torch")
    takes = Takes(
        source=frozenset({"reference", "fill_from_reference", "source_layout", "source_dialect"}),
        target=dict.fromkeys((*CAST_OPTIONS, "layout", "vocab_size", "vocab_multiple", "tied_head", "dialect"), ""),
    )
    tasks = (read_rank_file,)
    holds_iterations = True
    readers_names = (*ITERATION_PARTS, "*.pt")

    def evidence(self, place: Place) -> Evidence:
        """Rank directories; or iterations, of whatever format."""
        if holds_files(place, f"{RANK_PREFIX}*"):
            return Evidence.HERE
        return Evidence.ITERATIONS if place.iterations else Evidence.NONE

    def open(self, options: CommonOptions, *, adapters: bool, hand_out: HandOut) -> Opened:  # noqa: ARG002
        """Read the structure of the rank files of an iteration."""
        index = read_megatron(options.source, options.iteration, hand_out)
        return Opened(
            directory=Path(index.directory),
            iteration=index.iteration,
            read=lambda *_: index,
            held=index.held,
            summary=index.summary(),
            notes=tuple(notes_of_others(Path(file.file.path) for file in index.files)),
        )

    def arguments_file(self, directory: Path) -> Path | None:
        """The file of the first rank: the arguments are the same in all of them."""
        _, path = min(find_ranks(directory, None).paths.items())
        return path

    def facts_from_json(self, data: Mapping[str, Any]) -> MegatronIndex:
        """The index described by its `to_json`."""
        return MegatronIndex.from_json(data)

    def source(self, options: CommonOptions, facts: MegatronIndex, model: Model) -> MegatronSource:
        """The source of a job."""
        return MegatronSource(options, facts, model)

    def is_published(self, options: CommonOptions) -> bool:  # noqa: ARG002 - whatever the options
        """Never."""
        return False

    def plan(self, options: CommonOptions, source: Source, model: Model, iteration: str) -> PlannedResult:  # noqa: ARG002
        """The rank files of the requested layout."""
        parameters = source.parameters()
        rows = options.vocab_size
        if options.vocab_multiple is not None:
            rows = padded_rows(parameters, options.vocab_multiple * (options.layout.tp or 1))
        binding = resize_vocabulary(parameters, rows)
        first_stage = text_on_first_stage(model.defined, model.sizes, binding.layers)
        layout = complete_layout(options.layout, binding, model.defined, text_on_first_stage=first_stage)
        notes = (
            *resizing_of(parameters, rows),
            *check_training(layout, options.layout, model.defined, model.sizes),
        )
        types = ElementTypes(options, model)
        dialect = model.parameter_dialect(options.dialect)
        named = dialect.names(with_embedding(resolve_head(binding, model.defined, layout, options.tied_head)))
        plan = make_plan(types.of_parameters(named), layout, dialect.name)
        return PlannedResult(
            plan=plan,
            files=MegatronFiles(plan.dictionaries),
            notes=notes,
            casts=types.casts(),
            dialect=dialect.name,
            layout=layout,
        )

    def source_words(self, report: Mapping[str, Any]) -> list[str]:
        """The detected layout."""
        dialect = report["source_names"]["dialect"]
        return [f"found    {' '.join(_layout_words(report['source_layout']))}", f"         dialect {dialect}"]

    def target_words(self, report: Mapping[str, Any]) -> list[str]:
        """The layout, and a table of its stages."""
        sizes, *stages = _layout_words(report["layout"])
        return [
            f"layout   {sizes}",
            f"names    dialect {report['dialect']}",
            *(f"stages   {each}" for each in stages),
            "",
            _stage_table(report),
        ]


def _layout_words(layout: Mapping[str, Any]) -> list[str]:
    """The sizes of a layout, then its stages by modality."""
    sizes = f"tp={layout['tp']} pp={layout['pp']} vpp={layout['vpp']} ep={layout['ep']}"
    sizes += f" expert_tp={layout['expert_tp']}" if layout["expert_tp"] else ""
    sizes += "".join(f" {modality} tp={size}" for modality, size in layout["modality_tp"].items())
    if layout["placement"] != "sequential":
        sizes += f" placement={layout['placement']}"
    stages = layout["stages"].items()
    return [sizes, *(f"{modality}={shown_stages(tuple(map(tuple, rows)))}" for modality, rows in stages)]


def _stage_table(report: Mapping[str, Any]) -> str:
    modalities = list(report["layout"]["stages"])
    rows = [
        ["virtual stage", "pipeline rank", *(f"{modality} layers" for modality in modalities), "parameters", "bytes"]
    ]
    for stage in report["stages"]:
        layers = [str(stage["layers"].get(modality, 0)) for modality in modalities]
        position = [str(stage["virtual_stage"]), str(stage["pipeline_rank"])]
        rows.append([*position, *layers, f"{stage['parameters']:,}", binary(stage["bytes"])])
    return table(rows)
