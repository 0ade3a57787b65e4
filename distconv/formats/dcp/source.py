"""A DCP as a source: its chunks as tensors under published names, or as whole parameters under Megatron-side names.

Owns the choice between the two, by the names of the definition and its reference, and the prefix in front of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import prod
from typing import Any

from distconv.formats.base import Published, Source
from distconv.formats.dcp.index import DcpDirectory, DcpIndex, locate
from distconv.formats.dcp.known_names import known_parameters, known_tensors
from distconv.formats.dcp.prefix import find_prefix, names_under
from distconv.formats.iterations import RELEASE, VERSION_KEY
from distconv.formats.megatron.bind import MegatronBinding
from distconv.formats.megatron.expected import NOWHERE
from distconv.formats.megatron.index import MegatronIndex, RankFile
from distconv.formats.megatron.source import bound, restored
from distconv.formats.model import Model
from distconv.formats.select import check_taken_whole, selection
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.request import SourceLayout
from distconv.models.bind import bind
from distconv.models.names import pattern_of
from distconv.models.parameters import Binding, Parameter, Recipe
from distconv.options import CommonOptions
from distconv.runtime.hand_out import HandOut
from distconv.tensors.compose import renumbered, split_dim, substitute
from distconv.tensors.stored import NamedTensor, SourceFile, SourceIndex, StoredTensor

PUBLISHED, MEGATRON = "hf", "megatron"


@dataclass(frozen=True, kw_only=True)
class DcpFacts:
    """The tensors of a model, named without their `prefix`; `naming`: published or Megatron-side.

    `others`: descriptions of the entries that are no tensors of the model.
    """

    index: DcpIndex
    naming: str
    prefix: str
    others: tuple[str, ...]

    @property
    def directory(self) -> str:
        """The directory of the iteration."""
        return self.index.directory

    @property
    def config(self) -> None:
        """A DCP has no configuration."""

    @property
    def looked_at(self) -> Iterator[SourceFile]:
        """The files of chunks, and that of the metadata."""
        yield from self.index.described_by
        yield from self.index.files

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        return {**vars(self), "index": self.index.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> DcpFacts:
        """The facts in the data of `to_json`."""
        return DcpFacts(**{**data, "index": DcpIndex.from_json(data["index"]), "others": tuple(data["others"])})


def read_dcp(opened: DcpDirectory, given: str | None, hand_out: HandOut, model: Model) -> DcpFacts:
    """Locate the tensors of a model, whose names have the `given` prefix, or else a recognised one.

    Raises:
        InputError: no names of the model; chunks that are not at the positions in the metadata.
    """
    tensors = known_tensors(model.defined, model.followed)
    parameters = known_parameters(model.defined, model.followed)
    found = opened.metadata.tensors
    prefix = find_prefix(found, tensors | parameters, given)
    names = names_under(found, prefix)
    wanted = {full: bare for bare, full in names.items()}
    located = locate(opened, wanted.__contains__, hand_out)
    naming = PUBLISHED if len(tensors & names.keys()) >= len(parameters & names.keys()) else MEGATRON
    others = sorted({*opened.metadata.others, *(found.keys() - wanted.keys())} - {VERSION_KEY})
    return DcpFacts(index=located.renamed(wanted), naming=naming, prefix=prefix, others=_summarised(others))


def _summarised(names: Collection[str]) -> tuple[str, ...]:
    """Counts of unconverted entries by the first segment of their names, in words."""
    counts: dict[str, int] = {}
    for name in names:
        first = name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return tuple(f"{first} ({count} entries)" if count > 1 else first for first, count in sorted(counts.items()))


class _DcpSource(Source):
    def __init__(self, options: CommonOptions, facts: DcpFacts, model: Model) -> None:
        self._options, self._facts, self._model = options, facts, model
        self.notes: tuple[str, ...] = tuple(
            f"not carried over: {name}: training state; only the model is converted" for name in facts.others
        )

    def summary(self) -> dict[str, Any]:
        """The names of the tensors."""
        return {"source_names": {"naming": self._facts.naming, "prefix": self._facts.prefix}}


class MegatronNamedDcp(_DcpSource):
    """A DCP with Megatron-side names, as a Megatron source of one rank with whole parameters."""

    def __init__(self, options: CommonOptions, facts: DcpFacts, model: Model) -> None:
        super().__init__(options, facts, model)
        tensors = {
            ("model", each.name): ArchivedTensor.contiguous(each.tensor.dtype, each.tensor.shape, 0)
            for each in facts.index.tensors.values()
        }
        index = MegatronIndex(
            directory=facts.index.directory,
            iteration=RELEASE,
            dictionaries=("model",),
            files=(RankFile(rank=(0,), file=SourceFile(facts.index.directory, 0), tensors=tensors),),
            others=(),
        )
        self._bound: MegatronBinding = bound(options, index, model, SourceLayout())
        self._parameters = over(self._bound.parameters, facts.index.tensors)
        self.notes += self._bound.absent

    def parameters(self) -> Binding:
        """The parameters over their chunks."""
        return self._parameters

    def published(self) -> Published:
        """The published tensors of the parameters."""
        return self._published

    @cached_property
    def _published(self) -> Published:
        return restored(self._bound, self._parameters, self._model)


class PublishedDcp(_DcpSource):
    """Tensors under published names, as FSDP2 training saves them."""

    def __init__(self, options: CommonOptions, facts: DcpFacts, model: Model) -> None:
        super().__init__(options, facts, model)
        definition, sizes = model.defined, model.sizes
        packed = pattern_of(rule for rule in definition.rules if rule.packs_experts)
        # Packed experts have three dims, also if training held them as a matrix.
        experts = cache(lambda tensor: split_dim(tensor, 0, definition.expert_count(sizes) or 0))
        self._tensors = {
            name: replace(each, tensor=experts(each.tensor))
            if len(each.tensor.shape) == 2 and packed.fullmatch(definition.spelled(name))
            else each
            for name, each in facts.index.tensors.items()
        }

    def published(self) -> Published:
        """The tensors over their chunks."""
        check_taken_whole(self._options)
        definition = self._model.defined
        tensors = (replace(each, name=definition.spelled(each.name)) for each in self._tensors.values())
        return Published(tensors=tuple(tensors), tied=definition.is_tied(self._model.sizes))

    def parameters(self) -> Binding:
        """The parameters that the rules of the definition make from the tensors."""
        definition = self._model.defined
        stored = {
            name: StoredTensor(name, each.tensor.dtype, each.tensor.shape, NOWHERE, 0)
            for name, each in self._tensors.items()
        }
        index = SourceIndex(directory=self._facts.index.directory, tensors=stored)
        selected = selection(self._options, definition)
        return over(bind(definition, self._model.sizes, index, selected), self._tensors)


def over(binding: Binding, assembled: Mapping[str, NamedTensor]) -> Binding:
    """The binding with the stored tensors of its parameters replaced by the assembled tensors of their names."""
    recipes: dict[tuple[object, ...], Recipe] = {}
    parameters = []
    for each in binding.parameters:
        tensors = [assembled[source.name] for source in each.sources]
        # By the identity of the tables, which are few: their hash would cover every copy.
        key = (each.recipe, *((id(tensor.tensor), *(part.shape for part in tensor.sources)) for tensor in tensors))
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
    """The file of the first source of a tensor, an empty one for a tensor without elements."""
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
