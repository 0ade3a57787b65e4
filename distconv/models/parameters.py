"""Megatron-side parameters over stored tensors: the records that binding makes, and everything after it works with.

Owns what a parameter is, and the facts about all of them that a layout depends on. Binds nothing and reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distconv.errors import fault
from distconv.models.names import filled
from distconv.models.rules import Rule
from distconv.tensors.replicas import Replica
from distconv.tensors.stored import StoredTensor
from distconv.tensors.virtual import VirtualTensor

# The target of a parameter's rule, and its global layer and expert numbers; unique among the parameters of a model.
ParameterKey = tuple[str, "int | None", "int | None"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """A rule applied to sources of given shapes: one virtual tensor, shared by all layers that look alike.

    `unit`: the number of units (heads, groups) that a tensor-parallel cut must keep whole, and its words in messages;
    `dims`: the words in messages for the dims of the sources. `unused`: the number of source elements that are not in
    this tensor, because other recipes use them (the other experts of a packed source) or no recipe does (rows of a
    vocabulary, gaps between the rows of a strided view). Compared and hashed by identity, so that everything derived
    from a recipe is derived once.
    """

    rule: Rule
    tensor: VirtualTensor
    source_shapes: tuple[tuple[int, ...], ...]
    unit: tuple[int, str] | None
    dims: tuple[str, ...]
    unused: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """An unsplit Megatron-side parameter: a recipe, its operands, and the global numbers of layer and expert.

    Compared and hashed by identity, as its recipe is.
    """

    recipe: Recipe
    sources: tuple[StoredTensor, ...]
    layer: int | None = None
    expert: int | None = None

    @property
    def key(self) -> ParameterKey:
        """The key that identifies the parameter in its model."""
        return self.recipe.rule.target, self.layer, self.expert

    @property
    def name(self) -> str:
        """The Megatron-side name, with global layer and expert numbers."""
        return target_name(self.recipe.rule, self.layer, self.expert)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the unsplit parameter."""
        return self.recipe.tensor.nbytes


@dataclass(frozen=True, kw_only=True)
class Unconverted:
    """A source tensor that is left out on purpose, and why.

    `replicas`: what of it must equal other tensors for nothing to be lost, to be compared before anything is written.
    """

    tensor: StoredTensor
    reason: str
    replicas: tuple[Replica, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Binding:
    """The parameters of a model, the source tensors left out, and the facts of the model that a layout depends on.

    `layers`: number of layers by converted modality. `experts`: number of experts of a mixture, `None` for a dense
    model. `tied`: the head equals the embedding. `adapters`: all parameters are adapters, so `layers` is a lower bound.
    """

    parameters: tuple[Parameter, ...]
    unconverted: tuple[Unconverted, ...]
    layers: Mapping[str, int]
    experts: int | None
    tied: bool
    adapters: bool = False

    def by_key(self) -> Mapping[ParameterKey, Parameter]:
        """The parameters by their keys.

        Raises:
            JobError: two parameters with one key; a defect of binding.
        """
        found = {each.key: each for each in self.parameters}
        if len(found) < len(self.parameters):
            twice = next(each for each in self.parameters if found[each.key] is not each)
            raise fault(f"{twice.name}: would be two parameters")
        return found

    def and_text_from(self, other: Binding) -> Binding:
        """The parameters of both bindings, with `other` for the language model and its number of experts."""
        return Binding(
            parameters=self.parameters + other.parameters,
            unconverted=self.unconverted + other.unconverted,
            layers={**self.layers, **other.layers},
            experts=other.experts,
            tied=other.tied,
        )


def target_name(rule: Rule, layer: int | None, expert: int | None) -> str:
    """The target of a rule with its layer and expert placeholders filled."""
    return filled(rule.target, layer, expert, None)
