"""The layout of a Megatron source, detected from the names and shapes of its tensors, and completed by the user.

Owns `source_layout.*`: given values complete the detected layout, and a contradiction between the two is an error.
Pure; never checks single tensors against the layout, which `bind` does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from distconv.errors import InputError, counted, named, raise_if
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.megatron.names import Targets
from distconv.formats.megatron.piece_sizes import tensor_parallel_sizes
from distconv.formats.megatron.ranks import RankGrid, arrange
from distconv.layout.layout import (
    PLACEMENTS,
    CompleteLayout,
    StageRows,
    check_layout,
    shown_stages,
    stage_number,
    stage_rows,
)
from distconv.layout.request import SourceLayout
from distconv.models.adapters import belongs_to_adapter
from distconv.models.definition import Definition
from distconv.models.names import layers_named
from distconv.models.rules import TEXT
from distconv.models.sizes import Sizes
from distconv.models.wrappers import common_prefix
from distconv.tensors.operators import OPERATORS

# Experts of one matrix or one module, as Megatron-core's grouped matrix products and Transformer Engine hold them.
_GROUPED = re.compile(r"\.experts\.(weight[12]|linear_fc[12]\.weight\d*)$")
# Up projections of latent attention, each as two, as MindSpeed-LLM holds them with --mla-mm-split.
_SPLIT = re.compile(r"\.self_attention\.linear_(qk_nope|qk_rope|kv_nope|v)\.weight$")


@dataclass(kw_only=True)
class _Modality:
    """The stages of a modality in the files: `layers` by stage, and the stages of its `first` and `last` parameters."""

    layers: list[int]
    ends: dict[str, set[int]] = field(default_factory=lambda: {"first": set(), "last": set()})


def detect(
    definition: Definition,
    targets: Targets,
    sizes: Sizes,
    index: MegatronIndex,
    given: SourceLayout,
    names: Collection[str] = (),
) -> tuple[CompleteLayout, RankGrid]:
    """The layout of a source, and its ranks by coordinate.

    `sizes`: the sizes of the reference model; `names`: the names of its tensors.

    Raises:
        InputError: options that must be given because the files do not determine them; given options that contradict
            the files; files that no layout explains.
    """
    raise_if([*_unknown_modalities(definition, given), *_wrong_qkv(definition, given)])
    raise_if(list(_other_names(definition, index, targets)))
    experts = definition.expert_count(sizes)
    grid = arrange(index, targets, experts, given)
    vpp = len(index.dictionaries)
    problems = [
        f"source_layout.{axis}={wanted}: {index.directory} has {axis} {found}; leave it out"
        for axis, wanted, found in (("pp", given.pp, grid.pp), ("ep", given.ep, grid.ep), ("vpp", given.vpp, vpp))
        if wanted not in (None, found)
    ]
    raise_if(problems)
    held = _survey(grid, index, targets)
    if not held:
        names_held = [name for file in index.files for _, name in file.tensors]
        adapters = all(map(belongs_to_adapter, names_held))
        cause = "it holds adapters alone: +model=NAME_lora converts them" if adapters else "is this another model?"
        raise InputError(f"{index.directory}: model definition {definition.name} knows no name in it; {cause}")
    layers, at_least = _layers(definition, sizes, held, names)
    adapters = definition.adapters == "only"
    stages: dict[str, StageRows] = {}
    for modality, found in held.items():
        known = layers.get(modality)
        try:
            stages[modality] = _stages(modality, found.layers, known, grid.pp, vpp, given, index, adapters=adapters)
        except InputError as error:
            problems += error.problems
    raise_if(problems)
    tp, modality_tp, expert_tp = tensor_parallel_sizes(grid, targets, sizes, held, given, index.directory)
    layout = CompleteLayout(
        tp=tp,
        pp=grid.pp,
        vpp=vpp,
        ep=grid.ep,
        stages=stages,
        modality_tp=modality_tp,
        placement=given.placement or PLACEMENTS[0],
        expert_tp=expert_tp,
    )
    try:
        check_layout(layout, layers, experts, at_least=at_least)
    except InputError as error:
        raise InputError(f"{index.directory}: source_{problem}" for problem in error.problems) from None
    return _placed(layout, held, given, index), grid


def _other_names(definition: Definition, index: MegatronIndex, targets: Targets) -> Iterator[str]:
    """The problems of names that one thing explains: what is in front of all of them, or how experts are stored."""
    names = {name for file in index.files for _, name in file.tensors}
    unknown = sorted(name for name in names if targets.find(name) is None)
    grouped = [name for name in unknown if _GROUPED.search(name)]
    if grouped:
        yield (
            f"{index.directory}: {counted(len(grouped), 'tensor')} of grouped experts, such as {named(grouped, 2)}: "
            f"model definition {definition.name} knows one matrix for each expert (local_experts); let training save "
            "it without --moe-grouped-gemm"
        )
    elif split := [name for name in unknown if _SPLIT.search(name)]:
        yield (
            f"{index.directory}: {counted(len(split), 'tensor')} of up projections of latent attention that are split, "
            f"such as {named(split, 2)}; let training save it without --mla-mm-split"
        )
    elif (prefix := common_prefix(unknown, lambda name: targets.find(name) is not None)) and unknown == sorted(names):
        yield (
            f"{index.directory}: {prefix} is in front of the names of {counted(len(unknown), 'tensor')}, which a "
            "wrapped model is saved with; save the state dict of the model inside"
        )


def _unknown_modalities(definition: Definition, given: SourceLayout) -> list[str]:
    return [
        f"source_layout.{key}.{modality}: this model has no {modality} modality; it has "
        f"{', '.join(definition.modalities)}"
        for key, entries in (("stages", given.stages), ("modality_tp", given.modality_tp))
        for modality in entries
        if modality not in definition.modalities
    ]


def _wrong_qkv(definition: Definition, given: SourceLayout) -> list[str]:
    key = f"source_layout.vision_qkv={given.vision_qkv}"
    if given.vision_qkv == "fused" and not any(OPERATORS[rule.operator].is_by_head for rule in definition.rules):
        return [f"{key}: model definition {definition.name} has no qkv that training stores by head; leave it out"]
    return []


def _survey(grid: RankGrid, index: MegatronIndex, targets: Targets) -> Mapping[str, _Modality]:
    """The modalities with tensors in the files."""
    held: dict[str, _Modality] = {}
    virtual_stages = {key: number for number, key in enumerate(index.dictionaries)}
    for (_, pp_rank, _), file in grid.files.items():
        for key, name in file.tensors:
            local = targets.find(name)
            if local is None:
                continue
            rule = targets.rules(local.target)[0]
            found = held.get(rule.modality)
            if found is None:
                found = held[rule.modality] = _Modality(layers=[0] * (grid.pp * len(virtual_stages)))
            stage = stage_number(virtual_stages[key], pp_rank, grid.pp)
            if local.layer is not None:
                found.layers[stage] = max(found.layers[stage], local.layer + 1)
            elif rule.stage in found.ends:
                found.ends[rule.stage].add(stage)
    return held


def _layers(
    definition: Definition, sizes: Sizes, held: Collection[str], names: Collection[str]
) -> tuple[Mapping[str, int], bool]:
    """The numbers of layers by modality, and whether they are lower bounds.

    Lower bounds come from the names of an adapter whose configuration lacks the numbers.
    """
    try:
        return {modality: sizes.count(definition.modalities[modality]) for modality in held}, False
    except InputError:
        if definition.adapters != "only":
            raise
    return layers_named(definition.rules, map(definition.spelled, names)), True


def _stages(
    modality: str,
    found: list[int],
    layers: int | None,
    pp: int,
    vpp: int,
    given: SourceLayout,
    index: MegatronIndex,
    *,
    adapters: bool,
) -> StageRows:
    """The stage list of a modality with `layers` layers, `None` if unknown, of which the files have `found` by stage.

    `adapters`: the files hold adapters alone, which may be missing in some layers.
    """
    rows = stage_rows(found, pp)
    wanted: StageRows | None = given.stages.get(modality)
    if wanted is not None:
        flat = [count for row in wanted for count in row]
        period = len(found) if given.placement == "u_shape" else len(flat)
        meant = [(flat + [0] * len(found))[stage % max(period, 1)] for stage in range(len(found))]
        if meant == found or (adapters and all(most >= count for most, count in zip(meant, found, strict=True))):
            return wanted
        raise InputError(
            f"source_layout.stages.{modality}={shown_stages(wanted)}: the stages in {index.directory} hold "
            f"{shown_stages(rows)} {modality} layers; leave it out"
        )
    if sum(found) == layers:
        return rows
    for period in range(1, pp if modality != TEXT and vpp == 1 else 1):
        if sum(found[:period]) == layers and all(count == found[stage % period] for stage, count in enumerate(found)):
            return (tuple(found[:period]),)
    if adapters and len(found) == 1:
        return ((max(*found, layers or 0),),)
    if adapters and (layers is None or sum(found) < layers):
        raise InputError(
            f"{index.directory}: its stages hold adapters on {shown_stages(rows)} {modality} layers, and the reference "
            f"has {'none' if layers is None else layers}: the last layers of a stage may have none; give "
            f"source_layout.stages.{modality}"
        )
    raise InputError(
        f"{index.directory}: its stages hold {shown_stages(rows)} {modality} layers, but config.json says that the "
        f"model has {layers}; is this the reference of the model, and are the directories of all ranks there?"
    )


def _placed(
    layout: CompleteLayout, held: Mapping[str, _Modality], given: SourceLayout, index: MegatronIndex
) -> CompleteLayout:
    """The layout with the placement that explains the stages of the first and last parameters of the language model."""
    if TEXT not in held or not any(map(sum, layout.stages[TEXT])):
        return layout
    ends = held[TEXT].ends
    fitting = []
    for placement in PLACEMENTS:
        placed = replace(layout, placement=placement).placement_of(TEXT)
        if ends["first"] <= set(placed.first) and ends["last"] <= set(placed.last):
            fitting.append(placement)
    if given.placement is None:
        return replace(layout, placement=fitting[0]) if fitting else layout
    if fitting and given.placement not in fitting:
        raise InputError(
            f"source_layout.placement={given.placement}: in {index.directory} the ends of the language model are on "
            f"the stages of placement {fitting[0]}; leave it out"
        )
    return layout
