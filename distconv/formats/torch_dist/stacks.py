"""The tensors of a torch_dist result: parameters stacked by layer and by expert, and the keys of both.

Owns which layers are one tensor, and the places of parameters in it. Megatron-core stacks the layers of a block that
are alike, and keeps others apart by their numbers; the experts of a layer are always one tensor. Reads nothing.
Source: `TransformerBlock.sharded_state_dict` and `SequentialMLP.sharded_state_dict` of Megatron-core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from distconv.errors import counted, raise_if
from distconv.formats.dcp.plan import Part, Whole
from distconv.formats.torch_dist.keys import block_of, key_of
from distconv.models.names import filled
from distconv.models.parameter_dialect import ParameterDialect
from distconv.models.parameters import Binding, Parameter
from distconv.tensors.stored import NamedTensor
from distconv.tensors.virtual import Index

LAYER, EXPERT = "{layer}", "{expert}"
# The modality of a block of layers, and the beginning of its targets.
_Block = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """The parameters of a model as parts of tensors; `axes`: by key, the lengths of the dims that it stacks."""

    parts: tuple[Part, ...]
    axes: Mapping[str, Index]

    def extra_states(self, dialect: ParameterDialect) -> Iterator[str]:
        """The keys of the states that training asks for beside the parameters, one for each layer and expert."""
        modules = {module: axes or (1,) for key, axes in self.axes.items() for module in dialect.saving_states(key)}
        for module, lengths in modules.items():
            for position in product(*map(range, lengths)):
                yield f"{module}._extra_state/shard_{_dotted(position)}_{_dotted(lengths)}"


def stack(binding: Binding) -> Stacks:
    """The parameters of a binding, whose targets are those of a distributed checkpoint, stacked.

    Raises:
        InputError: layers or experts that are one tensor, but of different shapes or element types, or not all there.
    """
    alike = _alike(binding)
    parts: list[Part] = []
    wholes: dict[str, Whole] = {}
    axes: dict[str, Index] = {}
    problems: dict[str, None] = {}
    for each in binding.parameters:
        rule, tensor = each.recipe.rule, each.recipe.tensor
        stacked = (rule.modality, block_of(rule.target)) in alike
        pattern = key_of(rule.target, stacked=stacked)
        place = list(_place(each, binding, pattern))
        key = filled(pattern, each.layer, each.expert, None)
        lengths = axes.setdefault(key, tuple(length for _, length in place))
        whole = wholes.setdefault(key, Whole(key, tensor.dtype, lengths + tensor.shape))
        if (whole.dtype, whole.shape) != (tensor.dtype, lengths + tensor.shape):
            found = f"{whole.dtype} {list(whole.shape[len(lengths) :])} and {tensor.dtype} {list(tensor.shape)}"
            problems[f"{key}: is one tensor in torch_dist, but parameters that it stacks are {found}"] = None
        parts.append(Part(NamedTensor(each.sources, tensor, each.name), whole, tuple(at for at, _ in place)))
    counts = Counter(part.whole.name for part in parts)
    for key, lengths in axes.items():
        if counts[key] != prod(lengths):
            expected = counted(prod(lengths), "parameter")
            problems[f"{key}: is one tensor of {expected} in torch_dist, found {counts[key]}"] = None
    raise_if(list(problems))
    return Stacks(parts=tuple(parts), axes=axes)


def _place(parameter: Parameter, binding: Binding, pattern: str) -> Iterator[tuple[int, int]]:
    """Positions on the dims in front of a parameter's own, and their lengths: for numbers that its key lacks."""
    rule = parameter.recipe.rule
    if parameter.layer is not None and LAYER in rule.target and LAYER not in pattern:
        yield parameter.layer, binding.layers[rule.modality]
    if parameter.expert is not None and binding.experts is not None and EXPERT not in pattern:
        yield parameter.expert, binding.experts


def _alike(binding: Binding) -> set[_Block]:
    """The blocks all of whose layers are there, with parameters of the same targets and shapes.

    Layers that differ in element type alone are no reason for training to keep them apart.
    """
    forms: dict[_Block, dict[int, dict[tuple[str, int | None], Index]]] = {}
    for each in binding.parameters:
        rule = each.recipe.rule
        if each.layer is not None and (block := block_of(rule.target)):
            layer = forms.setdefault((rule.modality, block), {}).setdefault(each.layer, {})
            layer[rule.target, each.expert] = each.recipe.tensor.shape
    return {
        block
        for block, layers in forms.items()
        if len(layers) == binding.layers[block[0]] and all(each == layers[0] for each in layers.values())
    }


def _dotted(numbers: Index) -> str:
    return ".".join(map(str, numbers))
