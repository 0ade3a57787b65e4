"""Hugging Face directories as a format: recognised by their configuration, written as a reference directory has them.

Owns what a result takes from its source and its reference, adapters included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distconv.errors import InputError, counted, named
from distconv.formats.base import Evidence, Format, Opened, PlannedResult, Source
from distconv.formats.element_types import CAST_OPTIONS, ElementTypes
from distconv.formats.huggingface.files import HuggingFaceFiles
from distconv.formats.huggingface.follow import follow_reference, tie_of
from distconv.formats.huggingface.options import HuggingFaceOptions
from distconv.formats.huggingface.peft import as_peft, beside_adapters, merged_beside, merged_into, scaling_of
from distconv.formats.huggingface.plan import HuggingFacePlan, make_huggingface_plan
from distconv.formats.huggingface.source import HuggingFaceFacts, HuggingFaceSource, open_adapters, open_model
from distconv.formats.huggingface.true_config import untied, with_vocabulary
from distconv.formats.iterations import RELEASE, Place
from distconv.formats.model import MODEL_CONFIG, Model, Reference
from distconv.formats.takes import Takes, refusals_of_whole_tensors
from distconv.layout.tied_head import NOT_TIED
from distconv.models.adapters import CONFIG_NAME
from distconv.models.spellings import dialect_words
from distconv.runtime.hand_out import HandOut
from distconv.tensors.stored import NamedTensor


class HuggingFace(Format[HuggingFaceOptions]):
    """Directories as they are published."""

    name = "hf"
    noun = "Hugging Face"
    title = "a Hugging Face directory"
    words = "Hugging Face directory"
    elsewhere = ("huggingface", "hugging_face", "safetensors", "transformers", "published")
    takes = Takes(
        source=frozenset({"text_source", "projector", "lora_only"}),
        target=dict.fromkeys(CAST_OPTIONS, "")
        | {
            "shard_size": "",
            "merge_lora": "",
            "lora_alpha": "",
            "fill_from_reference": "",
            "tied_head": "",
            "vocab_size": "",
        },
        again=frozenset({"shard_size"}),
        refusals=refusals_of_whole_tensors(name),
    )
    shares_files = True
    marks = (MODEL_CONFIG, CONFIG_NAME)
    readers_names = (
        "*.safetensors",
        "*.safetensors.index.json",
        "pytorch_model*.bin",
        "pytorch_model*.bin.index.json",
        "adapter_model*.bin",
        "adapter_config.json",
    )

    def evidence(self, place: Place) -> Evidence:
        """A configuration may lie beside a checkpoint of training, never one of training beside a published model."""
        return Evidence.CONFIGURATION if any(name in place.names for name in self.marks) else Evidence.NONE

    def open(self, options: HuggingFaceOptions, *, adapters: bool, hand_out: HandOut) -> Opened:  # noqa: ARG002
        """The directories, with the headers of all their files."""
        facts = open_adapters(options) if adapters else open_model(options)
        return Opened(
            directory=options.source,
            iteration=options.iteration or RELEASE,
            read=lambda *_: facts,
            held=facts.held,
            config=facts.model.config,
            adapters=adapters,
        )

    def facts_from_json(self, data: Mapping[str, Any]) -> HuggingFaceFacts:
        """The facts in plain data."""
        return HuggingFaceFacts.from_json(data)

    def source(self, options: HuggingFaceOptions, facts: HuggingFaceFacts, model: Model) -> HuggingFaceSource:
        """The source of a job."""
        return HuggingFaceSource(options, facts, model)

    def is_published(self, options: HuggingFaceOptions) -> bool:  # noqa: ARG002 - whatever the options
        """Always."""
        return True

    def plan(self, options: HuggingFaceOptions, source: Source, model: Model, iteration: str) -> PlannedResult:  # noqa: ARG002
        """The directory that follows the reference of a source."""
        types = ElementTypes(options, model)
        published, reference, definition = source.published(), model.followed, model.definition
        if options.source == Path(reference.directory):
            # The same directory in another element type, or in other shards.
            tensors = types.of_tensors(published.tensors)
            return _planned(make_huggingface_plan(tensors, (), (), reference, shard_bytes=options.shard_size), types)
        if options.tied_head != "auto" and tie_of(published.tensors, model) is None:
            raise InputError(f"tied_head={options.tied_head}: {NOT_TIED}")
        if definition is not None and definition.adapters == "only" and not reference.is_adapter:
            return _planned(_plan_adapters(options, model, reference, published.tensors, types), types)
        if options.lora_alpha is not None and not options.merge_lora:
            raise InputError(
                f"lora_alpha={options.lora_alpha:g}: goes with merge_lora=true, or with adapters whose reference is "
                f"the base model; nothing of reference={reference.directory} needs it; leave it out"
            )
        if options.merge_lora:
            merged, reference = merged_beside(published.tensors, reference, model.scaling, options.lora_alpha)
            types = ElementTypes(options, replace(model, reference=reference))
            published = replace(published, tensors=tuple(merged))
        followed = follow_reference(
            published,
            replace(model, reference=reference),
            fill=options.fill_from_reference,
            tied_head=options.tied_head,
        )
        config = untied(reference.config, definition) if options.tied_head == "keep" else reference.config
        if published.rows is not None:
            config = with_vocabulary(config, model.defined, published.rows)
        left_out = published.left_out + followed.left_out
        plan = make_huggingface_plan(
            types.of_tensors(followed.tensors),
            left_out,
            followed.filled,
            reference,
            config=config,
            shard_bytes=options.shard_size,
        )
        return _planned(plan, types, followed.notes)

    def source_words(self, report: Mapping[str, Any]) -> list[str]:
        """How experts are packed, and the dialect that this is of."""
        names = report["source_names"]
        return [f"found    published names{dialect_words(names)}"] if names else []

    def target_words(self, report: Mapping[str, Any]) -> list[str]:
        """Tensors and files, and the tensors of the reference among them."""
        summary = report[self.name]
        lines = [
            f"{self.name}       {counted(summary['tensors'], 'tensor')} in {counted(len(report['files']), 'file')}"
        ]
        if filled := summary["filled_from_reference"]:
            lines.append(f"filled   {len(filled)} tensors come from the reference: {named(filled, 3)}")
        return lines


def _planned(plan: HuggingFacePlan, types: ElementTypes, notes: tuple[str, ...] = ()) -> PlannedResult:
    tensors = [each for held in plan.shard_files.values() for each in held]
    notes = (*notes, *plan.notes, *types.notes(tensors))
    return PlannedResult(plan=plan, files=HuggingFaceFiles(plan), notes=notes, casts=types.casts())


def _plan_adapters(
    options: HuggingFaceOptions, model: Model, base: Reference, tensors: Sequence[NamedTensor], types: ElementTypes
) -> HuggingFacePlan:
    """Adapters whose reference is the model that they are for: merged into it, or as PEFT saves them."""
    definition = model.defined
    left_out = beside_adapters(tensors, definition.name)
    scaling = scaling_of(model.scaling, options.lora_alpha)
    if options.merge_lora:
        merged = merged_into(tensors, definition.spelled, base, scaling)
        return make_huggingface_plan(types.of_tensors(merged), left_out, (), base, shard_bytes=options.shard_size)
    adapter = as_peft(tensors, definition.spelled, base, scaling, definition.name)
    own = replace(base, is_adapter=True, index=None, shard_files=None, index_content=None)
    texts = {CONFIG_NAME: adapter.config}
    typed = types.of_tensors(adapter.tensors)
    return make_huggingface_plan(typed, left_out, (), own, texts, shard_bytes=options.shard_size)
