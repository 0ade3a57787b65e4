"""From facts to a plan: the pure middle of a job, the same on every process.

Owns the order of the planning stages: what the source gives, in the language of the result, laid out as the result is.
Facts come in as plain data that rank 0 shared; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distconv.errors import InputError
from distconv.formats.dcp.live_model import flattened, with_tied_head
from distconv.formats.dcp.plan import make_dcp_plan
from distconv.formats.huggingface.follow import Followed, follow
from distconv.formats.huggingface.peft import as_peft, beside_adapters, merged_beside, merged_into
from distconv.formats.huggingface.plan import make_huggingface_plan
from distconv.formats.megatron.plan import make_plan
from distconv.formats.records import Plan
from distconv.formats.replicas import Replica
from distconv.formats.sources import Origin, origin_of
from distconv.layout.balance import complete_layout
from distconv.layout.layout import CompleteLayout
from distconv.layout.partition import balanced_parts
from distconv.layout.shards import cut_recipes
from distconv.layout.tied_head import resolve_head
from distconv.models.adapters import CONFIG_NAME
from distconv.models.definition import Definition, parse_definition
from distconv.models.vocabulary import resize_vocabulary
from distconv.options import Options
from distconv.planning.facts import Facts, Reference
from distconv.tensors.stored import NamedTensor


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan, the stored copies that must agree with what it takes, and what is to be said of the source.

    `source_layout`: what was found of the layout of a source that has one.
    """

    plan: Plan
    copies: tuple[Replica, ...]
    notes: tuple[str, ...]
    source_layout: CompleteLayout | None = None

    def shares_of_copies(self, processes: int) -> list[Sequence[Replica]]:
        """The copies that each of so many processes compares."""
        parts = balanced_parts([each.nbytes for each in self.copies], processes)
        return [self.copies[part.start : part.stop] for part in parts]


def plan_job(config: Options, facts: Facts) -> Planned:
    """The plan of a job.

    Raises:
        InputError: everything that is wrong with the source, the definition or the layout, one kind at a time.
    """
    definition = None
    if facts.model is not None:
        sized = facts.reference is not None and not facts.reference.is_adapter
        definition = parse_definition(facts.model, facts.definition, sized=sized)
    origin = origin_of(config, facts, definition)
    if config.target_format == "hf" or (config.target_format == "dcp" and config.naming == "hf"):
        plan = _plan_published(config, facts, definition, origin)
    else:
        assert definition is not None
        plan = _plan_parameters(config, definition, origin)
    return Planned(plan=plan, copies=origin.copies, notes=origin.notes, source_layout=origin.layout)


def _plan_parameters(config: Options, definition: Definition, origin: Origin) -> Plan:
    binding = resize_vocabulary(origin.parameters(), config.vocab_size)
    layout = complete_layout(config.layout, binding, definition)
    binding = resolve_head(binding, definition, layout, config.tied_head)
    if config.target_format == "megatron":
        return make_plan(binding, layout)
    # Whole parameters, but proved as shards are: no element of a source is lost or doubled.
    cut_recipes((each.recipe for each in binding.parameters), layout)
    tensors = [NamedTensor(each.sources, each.recipe.tensor, each.name) for each in binding.parameters]
    return make_dcp_plan(_prefixed(tensors, config), binding.unconverted, config.naming)


def _plan_published(config: Options, facts: Facts, definition: Definition | None, origin: Origin) -> Plan:
    published = origin.published()
    reference = facts.reference
    tensors: Sequence[NamedTensor] = published.tensors
    followed = Followed(tensors=published.tensors, left_out=(), filled=())
    if reference is not None:
        assert definition is not None
        if definition.adapters == "only" and not reference.is_adapter:
            return _plan_adapters(config, definition, reference, tensors)
        if config.lora_alpha is not None and not config.merge_lora:
            raise InputError(
                f"lora_alpha={config.lora_alpha:g}: goes with merge_lora=true, or with adapters whose reference is the "
                f"base model; nothing of reference={reference.directory} needs it; leave it out"
            )
        if config.merge_lora:
            tensors, reference = merged_beside(tensors, reference, config.lora_alpha)
        tied = definition.tied_sources() if published.tied else None
        followed = follow(tensors, definition.spelled, reference, tied=tied, fill=config.fill_from_reference)
    left_out = published.left_out + followed.left_out
    if config.target_format == "hf":
        assert reference is not None
        return make_huggingface_plan(followed.tensors, left_out, followed.filled, reference)
    tensors, head = with_tied_head(followed.tensors, definition, facts.sizes(definition), config.tied_head)
    if config.packed_experts == "flatten" or (config.packed_experts == "auto" and config.name_prefix):
        tensors = flattened(tensors, definition)
    return make_dcp_plan(_prefixed(tensors, config), left_out + head, config.naming)


def _plan_adapters(config: Options, definition: Definition, base: Reference, tensors: Sequence[NamedTensor]) -> Plan:
    """Adapters whose reference is the model that they are for."""
    if config.target_format != "hf":
        raise InputError("naming=hf: adapters alone need reference=DIR with an adapter_config.json")
    left_out = beside_adapters(tensors, definition.name)
    if config.merge_lora:
        merged = merged_into(tensors, definition.spelled, base, config.lora_alpha)
        return make_huggingface_plan(merged, left_out, (), base)
    adapter = as_peft(tensors, definition.spelled, base, config.lora_alpha, definition.name)
    own = replace(base, is_adapter=True, index=None, shards=None, index_content=None)
    return make_huggingface_plan(adapter.tensors, left_out, (), own, {CONFIG_NAME: adapter.config})


def _prefixed(tensors: Sequence[NamedTensor], config: Options) -> list[NamedTensor]:
    return [replace(each, name=(config.name_prefix or "") + each.name) for each in tensors]
