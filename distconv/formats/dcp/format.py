"""Checkpoints of torch.distributed.checkpoint as a format: one whole model, under published or Megatron-side names.

Owns the naming of a result, and its differences from a published directory under FSDP2 training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distconv.errors import InputError, counted
from distconv.formats.base import Evidence, Format, Opened, PlannedResult, Source, holds_files
from distconv.formats.dcp.chunks import locate_chunks
from distconv.formats.dcp.files import DcpFiles
from distconv.formats.dcp.index import open_dcp
from distconv.formats.dcp.live_model import held_tensors, packed, with_tied_head
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.dcp.options import AUTO, DcpOptions
from distconv.formats.dcp.plan import Names, make_dcp_plan
from distconv.formats.dcp.source import PUBLISHED, DcpFacts, MegatronNamedDcp, PublishedDcp, read_dcp
from distconv.formats.element_types import CAST_OPTIONS, ElementTypes
from distconv.formats.foreign import is_of_core
from distconv.formats.huggingface.follow import Followed, follow_reference, tie_of
from distconv.formats.iterations import ITERATION_PARTS, RELEASE, Place, iteration_of
from distconv.formats.model import Model
from distconv.formats.takes import Takes, refusals_of_whole_tensors
from distconv.layout.balance import complete_layout
from distconv.layout.request import Layout
from distconv.layout.shards import cut_recipes
from distconv.layout.tied_head import resolve_head
from distconv.models.dialect import PUBLISHED as AS_PUBLISHED
from distconv.models.language_model import is_tied
from distconv.models.parameter_dialect import GROUPED, ParameterDialect
from distconv.models.parameters import Binding, Unconverted
from distconv.models.spellings import dialect_words
from distconv.models.vocabulary import resize_vocabulary, resizing_of
from distconv.runtime.hand_out import HandOut
from distconv.tensors.stored import NamedTensor

_Tensors = tuple[Sequence[NamedTensor], tuple[Unconverted, ...]]


class Dcp(Format[DcpOptions]):
    """Directories of `.metadata` and `.distcp` files."""

    name = "dcp"
    noun = "DCP"
    title = "a torch.distributed.checkpoint"
    words = "torch.distributed.checkpoint: whole tensors, no `layout`"
    elsewhere = ("fsdp", "fsdp2", "torch_dcp", "distcp", "torch_distributed_checkpoint")
    takes = Takes(
        source=frozenset({"reference", "fill_from_reference", "source_dialect"}),
        target={
            **dict.fromkeys(CAST_OPTIONS, ""),
            "naming": "",
            "packed_experts": "naming=hf",
            "dialect": "",
            "tied_head": "",
            "vocab_size": "",
            "fill_from_reference": "naming=hf",
        },
        either=frozenset({"name_prefix"}),
        refusals=refusals_of_whole_tensors(name),
    )
    tasks = (locate_chunks,)
    needs_config = False
    holds_iterations = True
    readers_names = ITERATION_PARTS

    def evidence(self, place: Place) -> Evidence:
        """Files of chunks, or metadata; not those of Megatron-core."""
        held = holds_files(place, METADATA, "*.distcp", "__*.metadata")
        return Evidence.HERE if held and not is_of_core(place) else Evidence.NONE

    def open(self, options: DcpOptions, *, adapters: bool, hand_out: HandOut) -> Opened:  # noqa: ARG002
        """The metadata of an iteration; its chunks are located when the names of its model are known."""
        opened = open_dcp(options.source, options.iteration)
        # The prefix of a result of this format is that of its own names.
        prefix = None if options.target_format == self.name else options.name_prefix
        return Opened(
            directory=opened.directory,
            iteration=iteration_of(opened.directory.resolve()) or RELEASE,
            read=lambda model, dialect: read_dcp(opened, prefix, dialect, hand_out, model),
            held=opened.held,
            names_suffice=True,
            notes=opened.unread(),
        )

    def facts_from_json(self, data: Mapping[str, Any]) -> DcpFacts:
        """The facts in plain data."""
        return DcpFacts.from_json(data)

    def source(self, options: DcpOptions, facts: DcpFacts, model: Model) -> Source:
        """The source of a job."""
        return (PublishedDcp if facts.naming == PUBLISHED else MegatronNamedDcp)(options, facts, model)

    def is_published(self, options: DcpOptions) -> bool:
        """Whether the option `naming` chooses published names."""
        return options.naming == PUBLISHED

    def plan(self, options: DcpOptions, source: Source, model: Model, iteration: str) -> PlannedResult:  # noqa: ARG002
        """The chunks of all tensors, under names with the prefix of the option `name_prefix`."""
        if self.is_published(options):
            dialect, _ = model.spellings.chosen(options.dialect or AS_PUBLISHED, "dialect")
            prefix = dialect.prefix if options.name_prefix is None else options.name_prefix
            names = Names(naming=PUBLISHED, dialect=dialect.name, prefix=prefix)
            # Experts that are packed otherwise are in no dialect.
            told = dialect.name if options.packed_experts == AUTO else None
            types = ElementTypes(options, model, prefix)
            tensors, left_out = _published(options, source, model, names, types)
            notes = (*model.spellings.notes(dialect.name), *types.notes(tensors))
        else:
            dialect_name = model.parameter_dialect(options.dialect).name
            told = dialect_name
            names = Names(naming=options.naming, dialect=dialect_name, prefix=options.name_prefix or "")
            types = ElementTypes(options, model, names.prefix)
            tensors, left_out = _parameters(options, source, model, types)
            tensors = [replace(each, name=names.prefix + each.name) for each in tensors]
            notes = resizing_of(source.parameters(), options.vocab_size)
        plan = make_dcp_plan(tensors, left_out, names)
        return PlannedResult(plan=plan, files=DcpFiles(plan), notes=notes, casts=types.casts(), dialect=told)

    def source_words(self, report: Mapping[str, Any]) -> list[str]:
        """The naming of the source, its prefix, and its dialect."""
        names = report["source_names"]
        prefix = f" with the prefix {names['prefix']}" if names["prefix"] else ""
        return [f"found    {names['naming']} names{prefix}{dialect_words(names)}"]

    def target_words(self, report: Mapping[str, Any]) -> list[str]:
        """Tensors and chunks, and one name as an example."""
        dcp = report[self.name]
        names = f"{dcp['naming']} names" + (f" with the prefix {dcp['prefix']}" if dcp["prefix"] else "")
        names += f", dialect {dcp['dialect']}" if dcp["dialect"] else ""
        what = f"{counted(dcp['tensors'], 'tensor')} in {counted(dcp['chunks'], 'chunk')}"
        return [f"dcp      {what}, {names}: {dcp['example']} …"]


def _check_ungrouped(binding: Binding, dialect: ParameterDialect) -> None:
    """Raise `InputError` where experts would be in one tensor for each rank, since a DCP has no ranks."""
    if any(each.recipe.rule.target.endswith(GROUPED) for each in binding.parameters):
        raise InputError(
            f"dialect={dialect.name}: groups the experts of each rank, and a dcp is of no rank; take another"
        )


def _parameters(options: DcpOptions, source: Source, model: Model, types: ElementTypes) -> _Tensors:
    binding = resize_vocabulary(source.parameters(), options.vocab_size)
    layout = complete_layout(Layout(), binding, model.defined)
    dialect = model.parameter_dialect(options.dialect)
    binding = dialect.names(resolve_head(binding, model.defined, layout, options.tied_head))
    _check_ungrouped(binding, dialect)
    binding = types.of_parameters(binding)
    # Whole parameters, but proved as shards are: no element of a source is lost or doubled.
    cut_recipes((each.recipe for each in binding.parameters), layout)
    tensors = [NamedTensor(each.sources, each.recipe.tensor, each.name) for each in binding.parameters]
    return tensors, binding.unconverted


def _published(options: DcpOptions, source: Source, model: Model, names: Names, types: ElementTypes) -> _Tensors:
    published, reference = source.published(), model.reference
    dialect, holding = model.spellings.chosen(options.dialect or AS_PUBLISHED, "dialect")
    followed = Followed(tensors=published.tensors, left_out=(), filled=())
    if reference is not None:
        adapters = model.definition is not None and model.definition.adapters == "only"
        if adapters and not reference.is_adapter:
            raise InputError(
                "naming=hf: adapters alone need another reference; give reference=DIR with an adapter_config.json"
            )
        fill, tied_head = options.fill_from_reference, options.tied_head
        followed = follow_reference(published, model, fill=fill, tied_head=tied_head)
    tie = tie_of(followed.tensors, model)
    # A model whose configuration does not say that its head is tied may have none.
    writes = dialect.writes_head and (model.definition is not None or is_tied(model.config) is True)
    tensors, head = with_tied_head(followed.tensors, tie, options.tied_head, writes=writes)
    tensors = packed(types.of_tensors(tensors), model, dialect, holding, options.packed_experts, names.prefix)
    held, not_held = held_tensors(tensors, model, holding, names.prefix)
    return held, published.left_out + followed.left_out + head + not_held
