"""The facts of a job: the records that rank 0 read, and that all processes plan with.

Owns their form as plain data for sharing. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distconv.formats.base import Source, SourceFacts
from distconv.formats.model import MODEL_CONFIG, Model, Reference
from distconv.formats.registry import Options, format_named
from distconv.layout.request import Layout
from distconv.models.definition_parser import parse_definition
from distconv.models.parameter_dialect_file import is_of_parameters, parse_parameter_dialects
from distconv.models.scaling import Scaling
from distconv.models.sizes import Sizes
from distconv.models.spellings import Spellings
from distconv.options import CommonOptions
from distconv.planning.suggested import Suggested
from distconv.tensors.stored import SourceFile


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A source with its format, its model, and the iteration of the result.

    `model` is the name of the model definition and `definition` its content, where there is one; `reference` is `None`
    for a source that describes itself; `scaling` is that of adapters, where it is known; `dialects` are the files of
    dialects, as `Library.dialects`. `described_by`: files that say something of the source beside its own and those of
    the reference. `suggested`: what the record of the source says of its files. `layout`: the content of the requested
    layout, where files say a part of it. `trained_rows`: rows of the vocabulary beyond those of the reference are known
    to be no padding. `notes` are sentences about what lies in the source and is
    not read. `parsed` is the model that rank 0 needed to read the source; it is not shared.
    """

    kind: str
    source: SourceFacts
    reference: Reference | None
    model: str | None
    definition: Mapping[str, Any]
    iteration: str
    scaling: Scaling | None = None
    dialects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    described_by: tuple[SourceFile, ...] = ()
    suggested: Suggested = field(default_factory=Suggested)
    layout: Mapping[str, Any] | None = None
    trained_rows: bool = False
    definition_file: str | None = None
    notes: tuple[str, ...] = ()
    parsed: Model | None = field(default=None, compare=False)

    @property
    def looked_at(self) -> Iterator[SourceFile]:
        """Every file that was read so that the job could be planned, as it was then."""
        yield from self.described_by
        yield from self.source.looked_at
        yield from () if self.reference is None else self.reference.looked_at

    def directories(self, options: CommonOptions) -> dict[str, Path]:
        """The directories that the job reads, by the option that names them."""
        named = {
            "source": options.source,
            "text_source": options.text_source,
            "reference": None if self.reference is None else Path(self.reference.directory),
        }
        return {key: directory for key, directory in named.items() if directory is not None}

    def settled(self, options: Options) -> Options:
        """The options with what files say in the place of their names."""
        return options if self.layout is None else replace(options, layout=Layout.from_content(self.layout))

    def bound_model(self) -> Model:
        """The model of the job, made from its definition on first use.

        Raises:
            InputError: every problem of the definition.
        """
        if self.parsed is not None:
            return replace(self.parsed, trained_rows=self.trained_rows)
        reference = self.reference
        config = (self.source.config or {}) if reference is None else reference.config
        directory = self.source.directory if reference is None else reference.directory
        model = model_of(self.model, self.definition, reference, config, directory, self.dialects)
        return replace(model, scaling=self.scaling, trained_rows=self.trained_rows)

    def bound(self, options: Options, model: Model) -> Source:
        """The source bound to its model, with what its record suggests where the user gave nothing.

        Raises:
            InputError: every contradiction between files, record and model.
        """
        form = format_named(self.kind)
        return self.suggested.heeded(options, lambda completed: form.source(completed, self.source, model))

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON data, to be shared with other processes."""
        reference = None if self.reference is None else self.reference.to_json()
        scaling = None if self.scaling is None else self.scaling.to_json()
        shared = {
            "source": self.source.to_json(),
            "reference": reference,
            "scaling": scaling,
            "described_by": [file.to_json() for file in self.described_by],
            "suggested": self.suggested.to_json(),
            "parsed": None,
        }
        return {**vars(self), **shared}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Facts:
        """The facts described by `to_json`."""
        reference = None if data["reference"] is None else Reference.from_json(data["reference"])
        source = format_named(data["kind"]).facts_from_json(data["source"])
        scaling = None if data["scaling"] is None else Scaling.parse(data["scaling"], data["scaling"]["where"])
        described_by = tuple(map(SourceFile.from_json, data["described_by"]))
        known = {"source": source, "reference": reference, "scaling": scaling, "described_by": described_by}
        others = {"suggested": Suggested(**data["suggested"]), "notes": tuple(data["notes"])}
        return Facts(**{**data, **known, **others})


def model_of(
    name: str | None,
    content: Mapping[str, Any],
    reference: Reference | None,
    config: Mapping[str, Any],
    directory: str,
    dialects: Mapping[str, Mapping[str, Any]],
) -> Model:
    """The model with a definition, given by name and content, and the configuration in `directory`.

    Raises:
        InputError: every problem of the definition, or of a dialect.
    """
    definition = None
    if name is not None:
        definition = parse_definition(name, content)
        definition = definition.of_model(Sizes(definition.sizes, config, f"{directory}/{MODEL_CONFIG}"))
        if reference is None or reference.is_adapter:
            # The sizes of adapters are in the configuration of their base model.
            definition = definition.without_base()
    path = f"{directory}/{MODEL_CONFIG}"
    of_parameters = {name: each for name, each in dialects.items() if is_of_parameters(each["content"])}
    return Model(
        definition=definition,
        reference=reference,
        config=config,
        config_path=path,
        spellings=Spellings.parse(dialects, config, path),
        parameter_dialects=parse_parameter_dialects(of_parameters),
    )
