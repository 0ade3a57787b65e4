"""From facts to a plan: the pure middle of a job, the same on every process.

Owns the order of the planning stages: bind, lay out, tie, plan. Facts come in as plain data that rank 0 shared; nothing
is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distconv.adapters import CONFIG_NAME, adapter_problems
from distconv.balance import complete_layout
from distconv.binding import bind
from distconv.config import JobConfig
from distconv.definition import PROJECTOR, Definition, parse_definition
from distconv.errors import InputError, raise_if
from distconv.layout import TEXT
from distconv.plan import Plan, make_plan
from distconv.rules import Rule
from distconv.sizes import Sizes
from distconv.source import SourceIndex
from distconv.tying import resolve_head
from distconv.vocabulary import resize_vocabulary


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One source directory: its tensors, and its `config.json`."""

    index: SourceIndex
    config: Mapping[str, Any]

    def sizes(self, definition: Definition) -> Sizes:
        """The sizes that a definition finds in this checkpoint's `config.json`."""
        return Sizes(definition.sizes, self.config, f"{self.index.directory}/config.json")

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing."""
        return {"index": self.index.to_json(), "config": self.config}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint that `to_json` described."""
        return Checkpoint(index=SourceIndex.from_json(data["index"]), config=data["config"])


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What planning starts from: the checkpoints, and the name and content of the model definition."""

    source: Checkpoint
    text_source: Checkpoint | None
    model: str
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


def plan_job(config: JobConfig, facts: Facts) -> Plan:
    """The plan of a job.

    Raises:
        InputError: everything that is wrong with the source, the definition or the layout, one kind at a time.
    """
    definition = parse_definition(facts.model, facts.definition)
    for modality in config.select or ():
        if modality not in definition.modalities:
            raise InputError(
                f"select: {facts.model} has no {modality} modality; it has {', '.join(definition.modalities)}"
            )
    keep_projector = config.projector == "keep" or (config.projector == "auto" and config.text_source is None)

    def selected(rule: Rule) -> str | None:
        if config.select is not None and rule.modality not in config.select:
            return f"not selected: {rule.modality} (select=[{','.join(config.select)}])"
        if config.lora_only and not rule.is_adapter:
            return "not an adapter (lora_only=true)"
        if rule.section == PROJECTOR and not keep_projector:
            why = "omit" if config.projector == "omit" else "auto, with text_source"
            return f"projector left out (projector={why}); projector=keep keeps it"
        return None

    def from_source(rule: Rule) -> str | None:
        if facts.text_source is not None and rule.modality == TEXT:
            return f"the language model comes from text_source={facts.text_source.index.directory}"
        return selected(rule)

    def from_text_source(rule: Rule) -> str | None:
        return selected(rule) if rule.modality == TEXT else "text_source: only its language model is converted"

    if config.lora_only and definition.adapters != "beside":
        raise InputError(f"lora_only=true: {facts.model} is not for sources that hold adapters beside base weights")
    binding = bind(definition, facts.source.sizes(definition), facts.source.index, from_source)
    if facts.text_source is not None:
        text = bind(definition, facts.text_source.sizes(definition), facts.text_source.index, from_text_source)
        binding = binding.and_text_from(text)
    if binding.adapters:
        shapes = {source.name: source.shape for each in binding.parameters for source in each.sources}
        raise_if(adapter_problems(facts.source.config, shapes, f"{facts.source.index.directory}/{CONFIG_NAME}"))
    binding = resize_vocabulary(binding, config.vocab_size)
    layout = complete_layout(config.layout, binding, definition)
    return make_plan(resolve_head(binding, definition, layout, config.tied_head), layout, config.iteration)
