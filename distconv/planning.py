"""From facts to a plan: the pure middle of a job, the same on every process.

Owns the order of the planning stages: bind, lay out, tie, plan. Facts come in as plain data that rank 0 shared; nothing
is read here.
"""

from __future__ import annotations

from dataclasses import replace

from distconv.adapters import CONFIG_NAME, adapter_problems
from distconv.balance import complete_layout
from distconv.binding import Binding, bind
from distconv.config import JobConfig
from distconv.dcp_plan import DcpPlan, make_dcp_plan
from distconv.definition import PROJECTOR, Definition, parse_definition
from distconv.errors import InputError, raise_if
from distconv.facts import Facts
from distconv.layout import TEXT
from distconv.megatron_plan import make_plan
from distconv.outputs import NamedTensor, Plan
from distconv.published import published_tensors
from distconv.rules import Rule
from distconv.shards import cut_recipes
from distconv.tying import resolve_head
from distconv.vocabulary import resize_vocabulary


def plan_job(config: JobConfig, facts: Facts) -> Plan:
    """The plan of a job.

    Raises:
        InputError: everything that is wrong with the source, the definition or the layout, one kind at a time.
    """
    definition = None if facts.model is None else parse_definition(facts.model, facts.definition)
    if config.target_format == "dcp" and config.naming == "hf":
        return _plan_published(config, facts, definition)
    assert definition is not None
    binding = resize_vocabulary(_bound(config, facts, definition), config.vocab_size)
    layout = complete_layout(config.layout, binding, definition)
    binding = resolve_head(binding, definition, layout, config.tied_head)
    if config.target_format == "megatron":
        return make_plan(binding, layout)
    # Whole parameters, but proved as shards are: no element of a source is lost or doubled.
    cut_recipes((each.recipe for each in binding.parameters), layout)
    whole = (
        NamedTensor(config.name_prefix + each.name, each.sources, each.recipe.tensor) for each in binding.parameters
    )
    return make_dcp_plan(whole, binding.unconverted, config.naming)


def _plan_published(config: JobConfig, facts: Facts, definition: Definition | None) -> DcpPlan:
    flattened = config.packed_experts == "flatten" or (config.packed_experts == "auto" and bool(config.name_prefix))
    sizes = None if definition is None else facts.source.sizes(definition)
    tensors, left_out = published_tensors(facts.source.index, definition, sizes, config.tied_head, flattened=flattened)
    named = (replace(each, name=config.name_prefix + each.name) for each in tensors)
    return make_dcp_plan(named, left_out, config.naming)


def _bound(config: JobConfig, facts: Facts, definition: Definition) -> Binding:
    for modality in config.select or ():
        if modality not in definition.modalities:
            raise InputError(
                f"select: {definition.name} has no {modality} modality; it has {', '.join(definition.modalities)}"
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
        raise InputError(f"lora_only=true: {definition.name} is not for sources that hold adapters beside base weights")
    binding = bind(definition, facts.source.sizes(definition), facts.source.index, from_source)
    if facts.text_source is not None:
        text = bind(definition, facts.text_source.sizes(definition), facts.text_source.index, from_text_source)
        binding = binding.and_text_from(text)
    if binding.adapters:
        shapes = {source.name: source.shape for each in binding.parameters for source in each.sources}
        raise_if(adapter_problems(facts.source.config, shapes, f"{facts.source.index.directory}/{CONFIG_NAME}"))
    return binding
