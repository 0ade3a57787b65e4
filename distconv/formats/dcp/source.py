"""A DCP as a source: its chunks as tensors under published names, or as whole parameters under Megatron-side names.

Owns the choice between the two, by the names of the definition and its reference, and the prefix in front of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

from distconv.errors import raise_if
from distconv.formats.base import Published, Source
from distconv.formats.dcp.index import DcpDirectory, DcpIndex, locate
from distconv.formats.dcp.known_names import known_parameters, known_tensors
from distconv.formats.dcp.prefix import find_prefix, is_under_prefix, names_under
from distconv.formats.iterations import RELEASE, VERSION_KEY
from distconv.formats.megatron.bind import MegatronBinding
from distconv.formats.megatron.index import MegatronIndex, RankFile
from distconv.formats.megatron.source import bound, restored
from distconv.formats.model import Model
from distconv.formats.select import check_taken_whole, selection
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.request import SourceLayout
from distconv.models.bind import bind
from distconv.models.names import by_spelling, pattern_of
from distconv.models.parameters import Binding, Parameter, Recipe
from distconv.models.vocabulary import with_rows_of
from distconv.options import CommonOptions
from distconv.runtime.hand_out import HandOut
from distconv.tensors.compose import renumbered, split_dim, substitute
from distconv.tensors.stored import NamedTensor, SourceFile, SourceIndex, StoredTensor

PUBLISHED, MEGATRON = "hf", "megatron"


@dataclass(frozen=True, kw_only=True)
class DcpFacts:
    """The tensors of a model, named without their `prefix`; `naming`: published or Megatron-side.

    `others`: descriptions of the entries that are no tensors of the model; `copies`: of those that have names of its
    tensors, under another prefix.
    """

    index: DcpIndex
    naming: str
    prefix: str
    others: tuple[str, ...]
    copies: tuple[str, ...] = ()

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
        lists = {key: tuple(data[key]) for key in ("others", "copies")}
        return DcpFacts(**{**data, "index": DcpIndex.from_json(data["index"]), **lists})


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
    known = tensors | parameters
    copies = {name for name in found.keys() - wanted.keys() if is_under_prefix(name, known)}
    others = {*opened.metadata.others, *(found.keys() - wanted.keys())} - {VERSION_KEY} - copies
    return DcpFacts(
        index=located.renamed(wanted),
        naming=naming,
        prefix=prefix,
        others=_summarised(sorted(others)),
        copies=_summarised(sorted(copies)),
    )


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
        under = f"under the prefix {facts.prefix}" if facts.prefix else "without a prefix"
        self.notes: tuple[str, ...] = (
            *(f"not carried over: {name}: training state; only the model is converted" for name in facts.others),
            *(
                f"not carried over: {name}: named as tensors of the model are, but what is {under} is converted; "
                "name_prefix= chooses"
                for name in facts.copies
            ),
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
        return restored(self._bound, self._parameters, self._model)


class PublishedDcp(_DcpSource):
    """Tensors under published names, as FSDP2 training saves them."""

    def __init__(self, options: CommonOptions, facts: DcpFacts, model: Model) -> None:
        super().__init__(options, facts, model)
        definition, sizes = model.defined, model.sizes
        packed = pattern_of(rule for rule in definition.rules if rule.packs_experts)
        count = definition.expert_count(sizes)

        def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
            """Whether packed experts are held as a matrix; where it does not divide, binding says what is wrong."""
            fits = count is not None and len(shape) == 2 and count and not shape[0] % count
            return bool(fits and packed.fullmatch(definition.spelled(name)))

        # Packed experts have three dims, also if training held them as a matrix.
        experts = cache(lambda tensor: split_dim(tensor, 0, count or 0))
        self._tensors = {
            name: replace(each, tensor=experts(each.tensor)) if is_matrix(name, each.tensor.shape) else each
            for name, each in facts.index.tensors.items()
        }

    def published(self) -> Published:
        """The tensors over their chunks."""
        check_taken_whole(self._options)
        definition = self._model.defined
        names, problems = by_spelling(self._tensors, definition.spelled, self._facts.index.directory)
        raise_if(problems)
        tensors = (replace(self._tensors[own], name=name) for name, own in names.items())
        return Published(tensors=tuple(tensors), tied=definition.is_tied(self._model.sizes))

    def parameters(self) -> Binding:
        """The parameters that the rules of the definition make from the tensors."""
        definition = self._model.defined
        directory = SourceFile(self._facts.index.directory, 0)
        stored = {
            name: StoredTensor(name, each.tensor.dtype, each.tensor.shape, _first_file(each, directory), 0)
            for name, each in self._tensors.items()
        }
        index = SourceIndex(directory=self._facts.index.directory, tensors=stored)
        selected = selection(self._options, definition)
        shapes = {definition.spelled(name): each.shape for name, each in stored.items()}
        sizes = with_rows_of(shapes, definition, self._model.sizes)
        return over(bind(definition, sizes, index, selected), self._tensors)


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
        replace(each, tensor=replace(each.tensor, file=_first_file(assembled[each.tensor.name], each.tensor.file)))
        for each in binding.unconverted
    )
    return replace(binding, parameters=tuple(parameters), unconverted=unconverted)


def _first_file(tensor: NamedTensor, otherwise: SourceFile) -> SourceFile:
    """The file of the first source of a tensor; another one for a tensor without elements."""
    return tensor.sources[0].file if tensor.sources else otherwise


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
