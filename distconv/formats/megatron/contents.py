"""What the files of a Megatron source hold, by target and by global numbers of layer and expert.

Owns the way from numbers local to a file to global ones. Pure, and judges nothing: what is missing or wrong is found
when the files are compared with a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.megatron.names import Targets
from distconv.formats.megatron.ranks import RankGrid
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.layout import CompleteLayout, stage_number
from distconv.models.bind import ParameterKey
from distconv.models.rules import Rule
from distconv.tensors.cuts import TENSOR_PARALLEL_RULES
from distconv.tensors.virtual import replaced


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """The pieces of each parameter, by tensor parallel rank, of the first stage and expert parallel rank that hold it.

    `examples` are the first parameter of each target that is held.
    """

    pieces: Mapping[ParameterKey, Mapping[int, ArchivedTensor]]
    examples: Mapping[str, ParameterKey]

    def full_shape(self, rule: Rule, key: ParameterKey, size: int) -> tuple[int, ...] | None:
        """The shape of an unsplit parameter, from its `size` pieces; nothing if there is none of them.

        A piece that is missing counts as one like the first.
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


def take_stock(
    index: MegatronIndex, grid: RankGrid, layout: CompleteLayout, targets: Targets, experts: int | None
) -> Holdings:
    """What the files hold under a layout. Names that no rule knows, and layers beyond the layout's, are left out."""
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
            pieces.setdefault((local.target, layer, expert), {}).setdefault(tp_rank, tensor)
    examples: dict[str, ParameterKey] = {}
    for parameter in pieces:
        examples.setdefault(parameter[0], parameter)
    return Holdings(pieces=pieces, examples=examples)
