"""Completing a requested layout: sizes from stage lists, and stage lists from sizes.

Owns the defaults: an encoder without a list stands on the first stage, and language model layers without a list are
spread so that the heaviest pipeline rank, and then the heaviest stage, is as light as possible in bytes, among the
layouts that the training side can run. What it chooses is printed with the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import itemgetter

from distconv.errors import raise_if
from distconv.layout.interleaving import heaviest, interleaved_ranges
from distconv.layout.layout import (
    CompleteLayout,
    check_layout,
    occupied_stages,
    shown_stages,
    stage_number,
    stage_rows,
)
from distconv.layout.request import Layout
from distconv.models.definition import Definition
from distconv.models.parameters import Binding
from distconv.models.rules import TEXT


def complete_layout(
    request: Layout, binding: Binding, definition: Definition, *, text_on_first_stage: int = 0
) -> CompleteLayout:
    """The layout for a bound model; of a text list that is chosen, the first stage has at least so many layers.

    Raises:
        InputError: a key for a modality that the model does not have; sizes and lists that contradict each other or the
            model.
    """
    problems = []
    for key, given in (("stages", request.stages), ("modality_tp", request.modality_tp)):
        problems += [
            f"layout.{key}.{modality}: this model has no {modality} modality; it has {', '.join(definition.modalities)}"
            for modality in given
            if modality not in definition.modalities
        ]
    raise_if(problems)
    leading = request.stages.get(TEXT)
    if leading is None and TEXT not in binding.layers:
        leading = max(request.stages.values(), key=lambda rows: len(rows[0]), default=None)
    if leading is not None:
        for axis, found in (("pp", len(leading[0])), ("vpp", len(leading))):
            given_size = getattr(request, axis)
            if given_size not in (None, found):
                problems.append(
                    f"layout.{axis}={given_size}: the stage list {shown_stages(leading)} has {axis} {found}"
                )
    raise_if(problems)
    pp = len(leading[0]) if leading is not None else request.pp or 1
    vpp = len(leading) if leading is not None else request.vpp or 1

    stages = {modality: rows for modality, rows in request.stages.items() if modality in binding.layers}
    for modality, count in binding.layers.items():
        if modality != TEXT and modality not in stages:
            stages[modality] = stage_rows([count] + [0] * (pp * vpp - 1), pp)
    layout = CompleteLayout(
        tp=request.tp or 1,
        pp=pp,
        vpp=vpp,
        ep=request.ep or 1,
        stages=stages,
        modality_tp=request.modality_tp,
        placement=request.placement,
        expert_tp=None if request.expert_tp == (request.tp or 1) else request.expert_tp,
    )
    check_layout(layout, binding.layers, binding.experts, at_least=binding.adapters)
    if TEXT in binding.layers and TEXT not in stages:
        if layout.stage_count > sum(binding.layers.values()):
            problems.append(
                f"layout.pp={pp} and layout.vpp={vpp}: {layout.stage_count} stages, but the model has "
                f"{sum(binding.layers.values())} layers; "
                "lower one of the two, or, to leave stages empty, give layout.stages.text"
            )
            raise_if(problems)
        stages[TEXT] = stage_rows(_balanced_text(layout, binding, definition, text_on_first_stage), pp)
    return layout


def _balanced_text(layout: CompleteLayout, binding: Binding, definition: Definition, on_first_stage: int) -> list[int]:
    """Language model layers per stage, given where the encoders stand; the last layer is not before an encoder's.

    Weights are the bytes on one expert parallel rank, times `ep` so that they are integers: experts are divided over
    these ranks, and all other parameters are on every one.
    """
    layers = [0] * binding.layers[TEXT]
    carried = [0] * layout.stage_count
    ends = {"first": 0, "last": 0}
    tied, embedding = definition.tied, 0
    targets = set()
    placements = {modality: layout.placement_of(modality) for modality in layout.stages}
    for parameter in binding.parameters:
        rule = parameter.recipe.rule
        nbytes = parameter.nbytes * (layout.ep if parameter.expert is None else 1)
        targets.add(rule.target)
        if tied is not None and rule.target == tied.embedding:
            embedding += nbytes
        if rule.modality != TEXT:
            for stage, _ in placements[rule.modality].stages(rule.stage, parameter.layer):
                carried[stage] += nbytes
        elif parameter.layer is not None:
            layers[parameter.layer] += nbytes
        elif rule.stage in ends:
            ends[rule.stage] += nbytes
    # The head of a tied model is a copy of the embedding, where the two are on different stages.
    copy = embedding if binding.tied and tied is not None and tied.head not in targets else 0
    pp = layout.pp
    reached = max((occupied_stages(rows)[-1] for rows in layout.stages.values()), default=0)
    if layout.placement == "u_shape":
        carried[0] += ends["first"]
        carried[stage_number(layout.vpp - 1, 0, pp)] += ends["last"] + (copy if pp > 1 else 0)
        return _spread(layers, carried, pp, on_first_stage, reached)
    layers[0] += ends["first"]
    layers[-1] += ends["last"]
    options = []
    if copy:
        # Of a model that is on one stage, the embedding serves as the head.
        last = 0 if on_first_stage else layout.stage_count - 1
        undivided = [_moved([0] * layout.stage_count, stage, len(layers)) for stage in range(reached, last + 1)]
        options = [(_load(counts, layers, carried, pp), counts) for counts in undivided]
        layers[-1] += copy
    divided = _spread(layers, carried, pp, on_first_stage, reached)
    return min([(_load(divided, layers, carried, pp), divided), *options], key=itemgetter(0))[1]


def _spread(layers: Sequence[int], carried: Sequence[int], pp: int, on_first_stage: int, reached: int) -> list[int]:
    """Numbers of layers per stage, for layers of these weights and stages that carry other weights already.

    So many layers at least are `on_first_stage`, and the last layer is on the stage `reached` or a later one.
    """
    fixed = min(on_first_stage, len(layers))
    loads = [carried[0] + sum(layers[:fixed]), *carried[1:]]
    counts = _moved([len(part) for part in interleaved_ranges(layers[fixed:], loads, pp)], 0, fixed)
    last = max(stage for stage, count in enumerate(counts) if count)
    if last >= reached or fixed == len(layers):
        return counts
    # The last layer moves alone: any further one would only weigh on those stages as well.
    remaining = _moved(counts, last, -1)
    followed = [_moved(remaining, stage, 1) for stage in range(reached, len(counts))]
    return min(followed, key=lambda each: _load(each, layers, carried, pp))


def _moved(counts: Sequence[int], stage: int, layers: int) -> list[int]:
    return [count + layers if each == stage else count for each, count in enumerate(counts)]


def _load(counts: Sequence[int], layers: Sequence[int], carried: Sequence[int], pp: int) -> tuple[int, int]:
    parts = [range(start, stop) for start, stop in pairwise((0, *accumulate(counts)))]
    return heaviest(parts, layers, carried, pp)
