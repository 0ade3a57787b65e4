"""The contents of the rank files of a Megatron source: pieces by target, and by global layer and expert numbers.

Owns the mapping from numbers local to a file to global ones. Pure; never checks completeness, which the comparison with
a plan does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.megatron.names import Targets
from distconv.formats.megatron.ranks import RankGrid
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.layout import CompleteLayout, stage_number
from distconv.models.parameters import ParameterKey
from distconv.models.rules import Rule
from distconv.tensors.cuts import TENSOR_PARALLEL_RULES
from distconv.tensors.virtual import replaced


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The pieces of the parameters in the files.

    `pieces`: parameter key → tensor parallel rank → piece, from the first stage and expert parallel rank that have it.
    `examples`: target → key of its first parameter in the files.
    """

    pieces: Mapping[ParameterKey, Mapping[int, ArchivedTensor]]
    examples: Mapping[str, ParameterKey]

    def full_shape(self, rule: Rule, key: ParameterKey, size: int) -> tuple[int, ...] | None:
        """The shape of an unsplit parameter cut into `size` pieces, `None` without any piece in the files.

        A missing piece counts with the shape of the first one.
        """
        pieces = self.pieces.get(key, {})
        shapes = [pieces[rank].shape for rank in range(size) if rank in pieces]
        if not shapes:
            return None
        first = shapes[0]
        dim = TENSOR_PARALLEL_RULES[rule.tensor_parallel].dim_of(first)
        if dim is None or any(len(shape) != len(first) for shape in shapes):
            return first
        shapes += [first] * (size - len(shapes))
        return replaced(first, dim, sum(shape[dim] for shape in shapes))


def contents_of(
    index: MegatronIndex, grid: RankGrid, layout: CompleteLayout, targets: Targets, experts: int | None
) -> Contents:
    """The contents of the files under a layout, without names that no rule knows and layers beyond the layout.

    `experts`: the number of experts of the model, `None` for a dense model.
    """
    layers = {
        modality: {
            (stage, local): layer
            for layer, holders in layout.placement_of(modality).of_layer.items()
            for stage, local in holders
        }
        for modality in layout.stages
    }
    virtual_stages = {key: number for number, key in enumerate(index.dictionaries)}
    pieces: dict[ParameterKey, dict[int, ArchivedTensor]] = {}
    for tp_rank, pp_rank, ep_rank in sorted(grid.files):
        for (key, name), tensor in grid.files[tp_rank, pp_rank, ep_rank].tensors.items():
            local = targets.find(name)
            if local is None:
                continue
            layer, expert = local.layer, local.expert
            if layer is not None:
                stage = stage_number(virtual_stages[key], pp_rank, grid.pp)
                layer = layers[targets.rules(local.target)[0].modality].get((stage, layer))
                if layer is None:
                    continue
            if expert is not None and experts is not None:
                expert += ep_rank * (experts // grid.ep)
            # Ranks beyond the number of pieces hold them once more.
            number = tp_rank % layout.pieces(targets.rules(local.target)[0]) if expert is not None else tp_rank
            pieces.setdefault((local.target, layer, expert), {}).setdefault(number, tensor)
    examples: dict[str, ParameterKey] = {}
    for parameter in pieces:
        examples.setdefault(parameter[0], parameter)
    return Contents(pieces=pieces, examples=examples)
