"""What a source gives to a plan, whatever its format: Megatron-side parameters, or tensors under published names.

Owns the way from each format to each of the two: binding forward, binding backward, and what is the same already. It
knows no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Protocol

from distconv.errors import raise_if
from distconv.formats.iterations import RELEASE
from distconv.formats.megatron.bind import MegatronBinding, bind_megatron
from distconv.formats.megatron.expected import NOWHERE
from distconv.formats.megatron.index import MegatronIndex, RankFile
from distconv.formats.replicas import Replica
from distconv.formats.select import check_taken_whole, selection
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.layout import CompleteLayout
from distconv.layout.request import SourceLayout
from distconv.models.adapters import CONFIG_NAME, adapter_problems
from distconv.models.bind import Binding, Parameter, Recipe, Unconverted, bind
from distconv.models.definition import Definition
from distconv.models.names import pattern_of
from distconv.models.rules import TEXT, Rule
from distconv.models.unbind import restore, with_vocabulary
from distconv.models.vocabulary import SIZE_NAME, has_vocabulary
from distconv.options import Options
from distconv.planning.facts import Checkpoint, DcpSource, Facts, Reference
from distconv.tensors.compose import renumbered, split_dim, substitute
from distconv.tensors.stored import NamedTensor, SourceFile, SourceIndex, StoredTensor, as_stored


@dataclass(frozen=True, kw_only=True)
class Published:
    """Tensors under published names, in a definition's spelling, and what has no place among them."""

    tensors: tuple[NamedTensor, ...]
    left_out: tuple[Unconverted, ...] = ()
    tied: bool = False


class Origin(Protocol):
    """A source. `copies`: stored tensors that must be what is made of others; `notes`: what is said of the source.

    `layout`: what was found of it, if it has one.
    """

    copies: tuple[Replica, ...]
    notes: tuple[str, ...]
    layout: CompleteLayout | None

    def parameters(self) -> Binding:
        """The Megatron-side parameters."""

    def published(self) -> Published:
        """The tensors under published names."""


def origin_of(config: Options, facts: Facts, definition: Definition | None) -> Origin:
    """The source of a job; without a definition it gives published tensors only."""
    if definition is None or isinstance(facts.source, Checkpoint):
        return _HuggingFace(config, facts, definition)
    assert facts.reference is not None
    if isinstance(facts.source, MegatronIndex):
        return _Megatron(config, facts.source, facts.reference, definition)
    if facts.source.naming == "hf":
        return _PublishedDcp(config, facts.source, facts.reference, definition)
    return _MegatronDcp(config, facts.source, facts.reference, definition)


class _HuggingFace:
    copies: tuple[Replica, ...] = ()
    notes: tuple[str, ...] = ()
    layout: CompleteLayout | None = None

    def __init__(self, config: Options, facts: Facts, definition: Definition | None) -> None:
        assert isinstance(facts.source, Checkpoint)
        self._config, self._source, self._text_source = config, facts.source, facts.text_source
        self._definition = definition

    def published(self) -> Published:
        """The tensors as they are."""
        check_taken_whole(self._config)
        return Published(tensors=tuple(as_stored(self._source.index.tensors.values())))

    def parameters(self) -> Binding:
        """The parameters that the rules of the definition make."""
        config, definition, source, text_source = self._config, self._definition, self._source, self._text_source
        assert definition is not None
        selected = selection(config, definition)

        def from_source(rule: Rule) -> str | None:
            if text_source is not None and rule.modality == TEXT:
                return f"the language model comes from text_source={text_source.index.directory}"
            return selected(rule)

        def from_text_source(rule: Rule) -> str | None:
            return selected(rule) if rule.modality == TEXT else "text_source: only its language model is converted"

        binding = bind(definition, source.sizes(definition), source.index, from_source)
        if text_source is not None:
            text = bind(definition, text_source.sizes(definition), text_source.index, from_text_source)
            binding = binding.and_text_from(text)
        if binding.adapters:
            shapes = {stored.name: stored.shape for each in binding.parameters for stored in each.sources}
            left_out = [each.tensor.name for each in binding.unconverted]
            raise_if(adapter_problems(source.config, shapes, left_out, f"{source.index.directory}/{CONFIG_NAME}"))
        return binding


class _Megatron:
    def __init__(self, config: Options, index: MegatronIndex, reference: Reference, definition: Definition) -> None:
        self._reference, self._definition = reference, definition
        self._bound = _bound(config, index, reference, definition, config.source_layout)
        self.layout: CompleteLayout | None = self._bound.layout
        self.copies = self._bound.replicas
        self.notes = (
            *(f"not carried over: {each.name}: {each.reason}" for each in self._bound.dropped),
            *self._bound.absent,
        )

    def parameters(self) -> Binding:
        """The parameters over their pieces."""
        return self._bound.parameters

    def published(self) -> Published:
        """The tensors that the parameters were made of."""
        return _restored(self._bound.published, self.parameters(), self._reference, self._definition)


class _MegatronDcp:
    """A DCP with Megatron names: one rank that holds whole parameters, which lie in chunks."""

    copies: tuple[Replica, ...] = ()
    layout: CompleteLayout | None = None

    def __init__(self, config: Options, source: DcpSource, reference: Reference, definition: Definition) -> None:
        self._reference, self._definition = reference, definition
        tensors = {
            ("model", each.name): ArchivedTensor.contiguous(each.tensor.dtype, each.tensor.shape, 0)
            for each in source.index.tensors.values()
        }
        index = MegatronIndex(
            directory=source.index.directory,
            iteration=RELEASE,
            dictionaries=("model",),
            files=(RankFile(rank=(0,), file=SourceFile(source.index.directory, 0), tensors=tensors),),
            others=(),
        )
        self._bound = _bound(config, index, reference, definition, SourceLayout())
        self._parameters = over(self._bound.parameters, source.index.tensors)
        self.notes = (*_not_carried(source), *self._bound.absent)

    def parameters(self) -> Binding:
        """The parameters over their chunks."""
        return self._parameters

    def published(self) -> Published:
        """The tensors that the parameters were made of."""
        return _restored(self._bound.published, self._parameters, self._reference, self._definition)


class _PublishedDcp:
    """A DCP with published names, as FSDP2 training saves them."""

    copies: tuple[Replica, ...] = ()
    layout: CompleteLayout | None = None

    def __init__(self, config: Options, source: DcpSource, reference: Reference, definition: Definition) -> None:
        self._config, self._reference, self._definition = config, reference, definition
        self._directory = source.index.directory
        self._sizes = reference.sizes(definition)
        packed = pattern_of(rule for rule in definition.rules if rule.packs_experts)
        # Experts are three dims, also where training held them as a matrix.
        experts = cache(lambda tensor: split_dim(tensor, 0, self._sizes.count(definition.experts or "")))
        self._tensors = {
            name: replace(each, tensor=experts(each.tensor))
            if len(each.tensor.shape) == 2 and packed.fullmatch(definition.spelled(name))
            else each
            for name, each in source.index.tensors.items()
        }
        self.notes = _not_carried(source)

    def published(self) -> Published:
        """The tensors over their chunks."""
        check_taken_whole(self._config)
        definition = self._definition
        tensors = (replace(each, name=definition.spelled(each.name)) for each in self._tensors.values())
        return Published(tensors=tuple(tensors), tied=definition.is_tied(self._sizes))

    def parameters(self) -> Binding:
        """The parameters that the rules of the definition make of them."""
        stored = {
            name: StoredTensor(name, each.tensor.dtype, each.tensor.shape, NOWHERE, 0)
            for name, each in self._tensors.items()
        }
        index = SourceIndex(directory=self._directory, tensors=stored)
        selected = selection(self._config, self._definition)
        return over(bind(self._definition, self._sizes, index, selected), self._tensors)


def _restored(published: Binding, parameters: Binding, reference: Reference, definition: Definition) -> Published:
    restored = restore(published, parameters)
    tensors = list(restored.tensors)
    if any(has_vocabulary(each.recipe.rule) for each in published.parameters):
        rows = reference.sizes(definition).get(SIZE_NAME)
        tensors = with_vocabulary(published, tensors, rows, f"reference={reference.directory}")
    return Published(tensors=tuple(tensors), left_out=restored.left_out, tied=published.tied)


def over(binding: Binding, assembled: Mapping[str, NamedTensor]) -> Binding:
    """The binding of tensors that lie in pieces themselves, over these pieces."""
    recipes: dict[tuple[object, ...], Recipe] = {}
    parameters = []
    for each in binding.parameters:
        tensors = [assembled[source.name] for source in each.sources]
        key = (each.recipe, *(id(tensor.tensor) for tensor in tensors))
        if key not in recipes:
            recipes[key] = _over(each.recipe, tensors)
        stored = tuple(source for tensor in tensors for source in tensor.sources)
        parameters.append(Parameter(recipes[key], stored, each.layer, each.expert))
    unconverted = tuple(
        replace(each, tensor=replace(each.tensor, file=_first_file(assembled[each.tensor.name])))
        for each in binding.unconverted
    )
    return replace(binding, parameters=tuple(parameters), unconverted=unconverted)


def _first_file(tensor: NamedTensor) -> SourceFile:
    """Where a tensor begins; one without elements is nowhere."""
    return tensor.sources[0].file if tensor.sources else NOWHERE


def _over(recipe: Recipe, tensors: list[NamedTensor]) -> Recipe:
    tables, count = [], 0
    for each in tensors:
        tables.append(renumbered(each.tensor, count))
        count += len(each.sources)
    shapes = tuple(source.shape for each in tensors for source in each.sources)
    between = sum(map(prod, shapes)) - sum(each.tensor.elements for each in tensors)
    return replace(
        recipe,
        tensor=substitute(recipe.tensor, tables),
        source_shapes=shapes,
        unused=recipe.unused + between,
    )


def _bound(
    config: Options, index: MegatronIndex, reference: Reference, definition: Definition, given: SourceLayout
) -> MegatronBinding:
    selected = selection(config, definition)
    names = reference.shards or ()
    return bind_megatron(definition, reference.sizes(definition), index, given, selected, names)


def _not_carried(source: DcpSource) -> tuple[str, ...]:
    return tuple(f"not carried over: {name}: training state; only the model is converted" for name in source.others)
