"""A Hugging Face directory as a source: published tensors, or the parameters that a definition makes of them.

Owns the combination of directories: of a model, of adapters alone, and of a separate language model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if
from distconv.formats.base import Held, Published, Source
from distconv.formats.foreign import foreign_problem
from distconv.formats.huggingface.directory import check_directory, read_directory, unread_weights
from distconv.formats.huggingface.peft_config import scaling_notes
from distconv.formats.huggingface.quantisation import lifted, undecided, words_of
from distconv.formats.huggingface.schemes import scheme_in
from distconv.formats.jsonfile import read_object
from distconv.formats.model import MODEL_CONFIG, Model
from distconv.formats.select import check_taken_whole, selection
from distconv.models.adapter_config import AdapterConfig
from distconv.models.adapters import CONFIG_NAME, belongs_to_adapter, factor_of
from distconv.models.bind import bind
from distconv.models.definition import Definition
from distconv.models.dialect import PUBLISHED, Holding
from distconv.models.experts import as_published
from distconv.models.language_model import embeddings
from distconv.models.over import as_index, over
from distconv.models.parameters import Binding
from distconv.models.rules import TEXT, Rule
from distconv.models.sizes import Sizes
from distconv.models.spellings import forms_in_words
from distconv.models.wrappers import prefix_of_all, wrapped_words
from distconv.options import CommonOptions
from distconv.tensors.dtypes import FLOATING
from distconv.tensors.stored import SourceFile, SourceIndex, as_stored

_SAVED_SO = "which a wrapped model is saved with"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of one directory, and the parsed content of its `config.json` or `adapter_config.json`.

    `described_by`: that file, and the index file if there is one; `unread`: the names of files in the directory that
    look like weights of a model, or of an adapter, and are not read. `quantised`: how its weights are, in a
    sentence, where `index` has one tensor instead of the pieces of each.
    """

    index: SourceIndex
    config: Mapping[str, Any]
    described_by: tuple[SourceFile, ...] = ()
    unread: tuple[str, ...] = ()
    quantised: str = ""

    def sizes(self, definition: Definition) -> Sizes:
        """The sizes of a definition, by the configuration in the directory."""
        return Sizes(definition.sizes, self.config, f"{self.index.directory}/{MODEL_CONFIG}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        return {
            "index": self.index.to_json(),
            "config": self.config,
            "described_by": [file.to_json() for file in self.described_by],
            "unread": self.unread,
            "quantised": self.quantised,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint in the data of `to_json`."""
        return Checkpoint(
            index=SourceIndex.from_json(data["index"]),
            config=data["config"],
            described_by=tuple(map(SourceFile.from_json, data["described_by"])),
            unread=tuple(data["unread"]),
            quantised=data["quantised"],
        )

    def notes(self) -> Iterator[str]:
        """What lies in the directory and is not read, in sentences."""
        if self.quantised:
            yield self.quantised
        stem = CONFIG_NAME.partition("_")[0]
        adapter = [name for name in self.unread if name.startswith(stem)]
        others = [name for name in self.unread if name not in adapter]
        if adapter:
            yield (
                f"{self.index.directory}: not read: {named(adapter)}: an adapter that is not merged into the weights "
                "beside it; +model=NAME_lora converts it, or let PEFT merge it first"
            )
        if others:
            read = named(dict.fromkeys(Path(each.file.path).name for each in self.index.tensors.values()), 2)
            yield (
                f"{self.index.directory}: not read: {named(others)}: the model is what {read} hold; if it is not, give "
                "a directory that holds the others alone"
            )


@dataclass(frozen=True, kw_only=True)
class HuggingFaceFacts:
    """The directory of a model or of adapters; `text`: a separate directory of the language model, if given."""

    model: Checkpoint
    text: Checkpoint | None

    @property
    def directory(self) -> str:
        """The directory of the model."""
        return self.model.index.directory

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""
        return self.model.config

    @property
    def looked_at(self) -> Iterator[SourceFile]:
        """The files of tensors, the configurations, and the index files."""
        for each in (self.model, self.text):
            if each is not None:
                yield from each.described_by
                yield from each.index.files

    def held(self) -> Iterator[Held]:
        """The tensors of the model's files."""
        for each in self.model.index.tensors.values():
            yield Held(Path(each.file.path).name, each.name, each.dtype, each.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        return {"model": self.model.to_json(), "text": None if self.text is None else self.text.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> HuggingFaceFacts:
        """The facts in the data of `to_json`."""
        text = data["text"]
        return HuggingFaceFacts(
            model=Checkpoint.from_json(data["model"]), text=None if text is None else Checkpoint.from_json(text)
        )


def open_model(options: CommonOptions) -> HuggingFaceFacts:
    """Read the directories of a model.

    Raises:
        InputError: a directory that holds no model, or a damaged one.
    """
    text = options.text_source
    if text is not None and text.resolve() == options.source.resolve():
        raise InputError(f"text_source={text}: is the same directory as source; leave it out")
    plain = options.dtype in FLOATING
    model = _checkpoint(options.source, "source", dequantised=plain)
    return HuggingFaceFacts(
        model=model, text=None if text is None else _checkpoint(text, "text_source", dequantised=plain)
    )


def open_adapters(options: CommonOptions) -> HuggingFaceFacts:
    """Read the directory of adapters alone.

    Raises:
        InputError: the directory holds no adapters, or damaged ones; `text_source` is given.
    """
    if options.text_source is not None:
        raise InputError(f"text_source={options.text_source}: only adapters are converted; leave it out")
    seen: list[SourceFile] = []
    config = read_object(options.source / CONFIG_NAME, "the rank and the target modules of the adapter", seen)
    index = read_directory(options.source, adapter=True, seen=seen)
    unread = unread_weights(options.source, index, adapter=True)
    checkpoint = Checkpoint(index=index, config=config, described_by=tuple(seen), unread=unread)
    return HuggingFaceFacts(model=checkpoint, text=None)


def _checkpoint(directory: Path, key: str, *, dequantised: bool) -> Checkpoint:
    check_directory(directory, key)
    if not (directory / MODEL_CONFIG).exists() and (directory / CONFIG_NAME).exists():
        raise InputError(
            f"{key}={directory}: holds an adapter ({CONFIG_NAME}); name the model that it is for: +model=NAME_lora"
        )
    if not (directory / MODEL_CONFIG).exists() and (problem := foreign_problem(directory, key)):
        raise InputError(problem)
    seen: list[SourceFile] = []
    config = read_object(directory / MODEL_CONFIG, f"the sizes of the model in {key}", seen)
    index = read_directory(directory, seen=seen)
    unread = unread_weights(directory, index)
    if (directory / CONFIG_NAME).exists() and not any(belongs_to_adapter(name) for name in index.tensors):
        unread = (CONFIG_NAME, *unread)
    words = ""
    if dequantised and (scheme := scheme_in(config, f"{directory}/{MODEL_CONFIG}")) is not None:
        pieces, index = index, lifted(index, scheme)
        words = words_of(index, pieces, scheme)
    return Checkpoint(index=index, config=config, described_by=tuple(seen), unread=unread, quantised=words)


class HuggingFaceSource(Source):
    """The source of a job."""

    def __init__(self, options: CommonOptions, facts: HuggingFaceFacts, model: Model) -> None:
        self._options, self._facts, self._model = options, facts, model
        read = [facts.model] if facts.text is None else [facts.model, facts.text]
        self.notes = tuple(note for each in read for note in each.notes())
        if model.definition is not None and model.scaling is not None:
            self.notes += scaling_notes(model.scaling, model.definition.spelled, facts.model.index)
        self._dialect, self._holding, self._prefix = PUBLISHED, Holding(), ""
        if model.definition is None:
            names = facts.model.index.tensors.keys()
            self._dialect, self._holding = model.spellings.naming_of(names)
            self._prefix = prefix_of_all(names, embeddings())
            if self._prefix:
                self.notes += (f"{self._prefix} is in front of all names, {_SAVED_SO}",)

    def published(self) -> Published:
        """The tensors under published names, packed as they are."""
        check_taken_whole(self._options)
        self._check_plain()
        stored = self._facts.model.index.tensors
        if self._model.definition is None:
            self._check_unwrapped(stored)
        if self._model.definition is not None and self._model.definition.adapters == "only":
            self._check_adapters({name: each.shape for name, each in stored.items() if factor_of(name)}, ())
        published = self._holding.published
        return Published(tensors=tuple(replace(each, name=published(each.name)) for each in as_stored(stored.values())))

    def parameters(self) -> Binding:
        """The parameters that the rules of the definition make."""
        definition, source, text = self._model.defined, self._facts.model, self._facts.text
        self._check_plain()
        selected = selection(self._options, definition)

        def from_source(rule: Rule) -> str | None:
            if text is not None and rule.modality == TEXT:
                return f"the language model comes from text_source={text.index.directory}"
            return selected(rule)

        def from_text(rule: Rule) -> str | None:
            return selected(rule) if rule.modality == TEXT else "text_source: only its language model is converted"

        binding = self._bound(definition, source, from_source)
        if text is not None:
            binding = binding.and_text_from(self._bound(definition, text, from_text))
        if binding.adapters:
            shapes = {stored.name: stored.shape for each in binding.parameters for stored in each.sources}
            left_out = [each.tensor.name for each in binding.unconverted]
            self._check_adapters(shapes, left_out)
        return binding

    def _bound(self, definition: Definition, checkpoint: Checkpoint, left_out: Callable[[Rule], str | None]) -> Binding:
        """A checkpoint bound to the definition, its experts as they are published, whatever saved it."""
        index, sizes = checkpoint.index, checkpoint.sizes(definition)
        experts = self._model.spellings.experts
        if not experts.layers(index.tensors):
            return bind(definition, sizes, index, left_out)
        tensors = experts.respelled(list(as_stored(index.tensors.values())), as_published)
        if all(each.name in index.tensors and each.sources == (index.tensors[each.name],) for each in tensors) and (
            all(each.tensor.shape == each.sources[0].shape and not each.sources[0].is_turned for each in tensors)
        ):
            return bind(definition, sizes, index, left_out)
        found = bind(definition, sizes, as_index(tensors, index.directory), left_out)
        return over(found, {each.name: each for each in tensors})

    def _check_unwrapped(self, names: Collection[str]) -> None:
        """Raise `InputError` for names of a wrapped model that no definition is for, where it is certain that it is."""
        problem = wrapped_words(names)
        if problem is None and self._prefix and self._model.spellings.knows_model():
            problem = f"{self._prefix} is in front of all names, {_SAVED_SO}; save the model inside"
        raise_if([f"{self._facts.directory}: {problem}"] if problem else [])

    def _check_plain(self) -> None:
        """Raise `InputError` for weights that are quantised: nothing else is made of them than copies."""
        read = [each for each in (self._facts.model, self._facts.text) if each is not None and not each.quantised]
        asked = (undecided(each.index, each.config, f"{each.index.directory}/{MODEL_CONFIG}") for each in read)
        raise_if([each for each in asked if each is not None])

    def summary(self) -> dict[str, Any]:
        """How experts are packed, of a model that has some."""
        spellings, published = self._model.spellings, self._holding.published
        stored = self._facts.model.index.tensors
        forms = spellings.experts.forms({published(name): each.published_shape for name, each in stored.items()})
        if not forms and self._dialect == PUBLISHED:
            return {}
        names = {"naming": "hf", "prefix": "", "dialect": spellings.label(self._dialect, "", forms)}
        return {"source_names": {**names, "experts": forms_in_words(forms)}}

    def _check_adapters(self, shapes: Mapping[str, tuple[int, ...]], left_out: Sequence[str]) -> None:
        """Raise `InputError` if the configuration contradicts the factors; what is left out on purpose has names."""
        source = self._facts.model
        config = AdapterConfig.parse(source.config, f"{source.index.directory}/{CONFIG_NAME}")
        raise_if(config.contradictions(shapes, left_out))
