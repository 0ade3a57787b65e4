"""A DCP as a source: its chunks as tensors under published names, or as whole parameters under Megatron-side names.

Owns the choice between the two, by the names of the definition and its reference, and the prefix in front of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distconv.errors import InputError, named, raise_if
from distconv.formats.base import Published, Source
from distconv.formats.dcp.index import DcpDirectory, DcpIndex, locate
from distconv.formats.dcp.known_names import known_parameters, known_published
from distconv.formats.dcp.live_model import split_by_definition
from distconv.formats.dcp.naming import check_exchange, is_under_one_prefix, naming_of
from distconv.formats.dcp.options import DcpOptions
from distconv.formats.dcp.plan import MODEL_KEY
from distconv.formats.dcp.prefix import (
    common_prefix,
    find_prefix,
    is_under_prefix,
    names_under,
    of_training,
)
from distconv.formats.dcp.whole import WholeParameters
from distconv.formats.iterations import VERSION_KEY
from distconv.formats.model import Model
from distconv.formats.select import check_taken_whole, selection
from distconv.models.bind import bind
from distconv.models.dialect import PUBLISHED as AS_PUBLISHED
from distconv.models.experts import Layer, as_published
from distconv.models.names import by_spelling
from distconv.models.over import as_index, over
from distconv.models.packing import Form
from distconv.models.parameters import Binding
from distconv.models.spellings import forms_in_words
from distconv.models.vocabulary import with_rows_of
from distconv.runtime.hand_out import HandOut
from distconv.tensors.stored import SourceFile

PUBLISHED, MEGATRON = "hf", "megatron"
# A module that every Megatron-side decoder has, and no published model.
_MEGATRON = re.compile(r"\.self_attention\.linear_(?:qkv|q_proj|kv_up_proj)\.")


@dataclass(frozen=True, kw_only=True)
class DcpFacts:
    """The tensors of a model, named without their `prefix`; `naming`: published or Megatron-side.

    Published names are as published, whatever they are in the checkpoint: `dialect` is the first one with those names.
    `is_guess`: nothing told the prefix but what all names have in common. `others`: descriptions of the entries that
    are no tensors of the model; `copies`: of those that have names of its tensors, under another prefix.
    """

    index: DcpIndex
    naming: str
    prefix: str
    others: tuple[str, ...]
    copies: tuple[str, ...] = ()
    dialect: str = AS_PUBLISHED
    is_guess: bool = False

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


def read_dcp(opened: DcpDirectory, given: str | None, dialect: str | None, hand_out: HandOut, model: Model) -> DcpFacts:
    """Locate the tensors of a model, whose names have the `given` prefix, or else a recognised one.

    `dialect`: the one that the names are in; `None`: recognised.

    Raises:
        InputError: no names of the model; names that are not those of the dialect; chunks that are not at the positions
            in the metadata.
    """
    found = opened.metadata.tensors
    known = known_published(model)
    definition, dialects = model.definition, model.parameter_dialects
    parameters = set() if definition is None else known_parameters(definition, model.followed, dialects)
    if model.definition is None and (own := [name for name in found if _MEGATRON.search(name)]):
        raise InputError(
            f"the source holds names of Megatron-side parameters, such as {named(own, 2)}: they need a model "
            f"definition, and none is for model_type {model.config.get('model_type')!r}; name one with +model=NAME"
        )
    of_parameters = dialect in dialects.dialects
    naming, holding = naming_of(found, known, given, None if of_parameters else dialect, model)
    held = {holding.held(name) for name in known}
    has_names = model.reference is not None and model.reference.shard_files is not None
    is_open = model.definition is None and not has_names and not is_under_one_prefix(found, held, given)
    prefix = common_prefix(found, given) if is_open else find_prefix(found, held | parameters, given)
    names = {bare: full for bare, full in names_under(found, prefix).items() if bare in held or not of_training(full)}
    wanted = {full: holding.published(bare) for bare, full in names.items()}
    check_exchange(wanted, {full: bare for bare, full in names.items()}, holding, naming)
    located = locate(opened, wanted.__contains__, hand_out)
    is_published = len(held & names.keys()) >= len(parameters & names.keys())
    beside = found.keys() - wanted.keys()
    copies = {name for name in beside if is_under_prefix(name, held | parameters)}
    others = {*opened.metadata.blobs, *beside} - {VERSION_KEY} - copies
    if is_published == of_parameters and dialect is not None:
        names_are = "published" if is_published else "Megatron-side"
        raise InputError(f"source_dialect={dialect}: {opened.directory} has {names_are} names; leave it out")
    if not is_published:
        wanted = {full: bare for bare, full in names.items()}
    return DcpFacts(
        index=located.renamed(wanted),
        naming=PUBLISHED if is_published else MEGATRON,
        prefix=prefix,
        others=_summarised(sorted(others)),
        copies=_summarised(sorted(copies)),
        dialect=naming,
        is_guess=is_open and given is None,
    )


def _summarised(names: Collection[str]) -> tuple[str, ...]:
    """Counts of unconverted entries by the first segment of their names, in words."""
    counts: dict[str, int] = {}
    for name in names:
        first = name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return tuple(f"{first} ({count} entries)" if count > 1 else first for first, count in sorted(counts.items()))


class _DcpSource(Source):
    def __init__(self, options: DcpOptions, facts: DcpFacts, model: Model) -> None:
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
        names: dict[str, Any] = {"naming": self._facts.naming, "prefix": self._facts.prefix}
        return {"source_names": {**names, "dialect": None, "experts": []}}


class MegatronNamedDcp(_DcpSource):
    """A DCP with Megatron-side names, as a Megatron source of one rank with whole parameters."""

    def __init__(self, options: DcpOptions, facts: DcpFacts, model: Model) -> None:
        super().__init__(options, facts, model)
        self._whole = WholeParameters(options, facts.index, model)
        self.notes += self._whole.absent

    def summary(self) -> dict[str, Any]:
        """The names of the parameters, and their dialect."""
        names: dict[str, Any] = super().summary()["source_names"]
        return {"source_names": {**names, "dialect": self._whole.dialect}}

    def parameters(self) -> Binding:
        """The parameters over their chunks."""
        return self._whole.parameters

    def published(self) -> Published:
        """The published tensors of the parameters."""
        return self._whole.published()


class PublishedDcp(_DcpSource):
    """Tensors under published names, as FSDP2 training saves them."""

    def __init__(self, options: DcpOptions, facts: DcpFacts, model: Model) -> None:
        super().__init__(options, facts, model)
        given = options.source_dialect
        spellings, tensors = model.spellings, facts.index.tensors
        experts = spellings.experts
        if given is not None:
            _, holding = spellings.chosen(given, "source_dialect")
            experts = experts.given(given, holding.experts if given != AS_PUBLISHED else None)
        names, problems = by_spelling(tensors, model.spelled, facts.index.directory)
        raise_if(problems)
        self._forms = experts.forms({name: tensors[own].tensor.shape for name, own in names.items()})
        # Packed experts have three dims, also if training held them as matrices.
        unpacked = experts.respelled([replace(tensors[own], name=name) for name, own in names.items()], _deep)
        self._tensors = {each.name: each for each in split_by_definition(unpacked, model)}
        if facts.is_guess:
            what = f"prefix {facts.prefix or 'none'}: all names have it in common, and nothing else tells it"
            self.notes += (f"{what}; if it is another, give it with name_prefix=",)

    def published(self) -> Published:
        """The tensors over their chunks."""
        check_taken_whole(self._options)
        definition = self._model.definition
        tied = definition is not None and definition.is_tied(self._model.sizes)
        return Published(tensors=tuple(self._tensors.values()), tied=tied)

    def parameters(self) -> Binding:
        """The parameters that the rules of the definition make from the tensors."""
        definition = self._model.defined
        tensors = self._model.spellings.experts.respelled(list(self._tensors.values()), as_published)
        index = as_index(tensors, self._facts.index.directory)
        sizes = with_rows_of({each.name: each.tensor.shape for each in tensors}, definition, self._model.sizes)
        binding = bind(definition, sizes, index, selection(self._options, definition))
        return over(binding, {each.name: each for each in tensors})

    def summary(self) -> dict[str, Any]:
        """The names of the tensors, their dialect, and how experts are packed."""
        names, spellings = super().summary()["source_names"], self._model.spellings
        # The first segment is the key of the model in what training saves, not a prefix of its names.
        prefix = self._facts.prefix.removeprefix(f"{MODEL_KEY}.")
        label = spellings.label(self._facts.dialect, prefix, self._forms)
        return {"source_names": {**names, "dialect": label, "experts": forms_in_words(self._forms)}}


def _deep(_: Layer, form: Form) -> Form:
    return form if form is None else replace(form, flattened=False)
