"""Looking at the source: the facts that planning needs, read once by rank 0.

Owns the choice of the model definition and of the reference; files are read by their format: headers, metadata and
JSON, never tensor data.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distconv.errors import InputError, raise_if
from distconv.formats.base import Format, Opened
from distconv.formats.huggingface.directory import check_directory
from distconv.formats.huggingface.reference import read_reference
from distconv.formats.model import MODEL_CONFIG, Reference
from distconv.formats.provenance import PROVENANCE_NAME, Provenance, read_provenance
from distconv.formats.registry import Options, format_named, format_of, source_contradictions, target_contradictions
from distconv.models.library import Library, head_of
from distconv.planning.facts import Facts, model_of
from distconv.runtime.hand_out import HandOut, here

# Name and content of a model definition.
Chosen = tuple[str, Mapping[str, Any]]


def look(options: Options, chosen: Chosen | None, library: Library, hand_out: HandOut = here) -> Facts:
    """Read the facts of a job; `chosen` is the definition named by the user, `None` without one.

    Reading many files is handed out to processes, as the functions of `registry.tasks`.

    Raises:
        InputError: options that contradict, a directory that is not a checkpoint, or no definition for it.
    """
    raise_if(list(target_contradictions(options)))
    check_directory(options.source, "source")
    form = format_of(options.source)
    raise_if(list(source_contradictions(options, form)))
    adapters = chosen is not None and chosen[1].get("adapters") == "only"
    opened = form.open(options, adapters=adapters, hand_out=hand_out)
    needed = opened.config is None or not format_named(options.target_format).is_published(options)
    return facts_of(options, form, opened, chosen, library, needed=needed)


def facts_of(
    options: Options, form: Format[Options], opened: Opened, chosen: Chosen | None, library: Library, *, needed: bool
) -> Facts:
    """Read the facts of an opened source; `needed`: a model without a definition is refused.

    Raises:
        InputError: no definition, or a chosen one for another model; damaged files.
    """
    model = _Choice(library, chosen, opened)
    reference = None
    if opened.config is not None:
        config, directory = opened.config, str(opened.directory)
        if not opened.adapters:
            model.recognise(config, directory, needed=needed)
    else:
        provenance = read_provenance(opened.directory)
        reference = _reference(options, provenance.reference, opened.directory)
        config, directory = reference.config, reference.directory
        model.remember(provenance)
        model.recognise(config, directory, needed=needed, is_adapter=reference.is_adapter)
    name, content = model.chosen or (None, {})
    parsed = model_of(name, content, reference, config, directory)
    return Facts(
        kind=form.name,
        source=opened.read(parsed),
        reference=reference,
        model=name,
        definition=content,
        iteration=opened.iteration,
        parsed=parsed,
    )


def _reference(options: Options, remembered: str | None, directory: Path) -> Reference:
    """The reference of a source without its own configuration, from the options or its provenance (`remembered`)."""
    if options.reference is not None:
        return read_reference(options.reference, "reference")
    if remembered is None:
        raise InputError(
            f"reference is missing: give reference=DIR, the Hugging Face directory of the model that {directory} was "
            "trained from; its config.json says the sizes"
        )
    try:
        return read_reference(Path(remembered), "reference")
    except InputError as error:
        raise InputError(
            [
                (
                    f"{directory / PROVENANCE_NAME}: the reference that it names cannot be used; "
                    "give one with reference=DIR"
                ),
                *error.problems,
            ]
        ) from None


@dataclass
class _Choice:
    """The choice of the model definition of a source: by the user, its provenance, or the configuration of the model.

    `provenance_path`: the file that named the chosen definition, if it was the provenance.
    """

    library: Library
    chosen: Chosen | None
    opened: Opened
    provenance_path: Path | None = None

    def remember(self, provenance: Provenance) -> None:
        """Choose the definition in the provenance of the source, unless the user chose one."""
        if self.chosen is None and provenance.model is not None and provenance.model in self.library.names():
            self.chosen = provenance.model, self.library.content(provenance.model)
            self.provenance_path = self.opened.directory / PROVENANCE_NAME

    def recognise(self, config: Mapping[str, Any], directory: str, *, needed: bool, is_adapter: bool = False) -> None:
        """Choose the definition for the `model_type` of a configuration, or check the chosen one against it.

        Raises:
            InputError: no definition for this `model_type`, and one is needed; a chosen one for another `model_type`.
        """
        if self.chosen is None:
            self.chosen = _recognised(config, directory, self.library, needed=needed)
        if self.chosen is not None and not is_adapter:
            self._check(*self.chosen, config.get("model_type"), directory)

    def _check(self, name: str, content: Mapping[str, Any], found: object, directory: str) -> None:
        expected = head_of(content).get("model_types") or []
        if not expected or found in expected:
            return
        says = f"{directory}/{MODEL_CONFIG}: says model_type {found!r}, but "
        if self.provenance_path is not None:
            raise InputError(
                f"{says}{self.provenance_path} says that the source is {name}, which is {', '.join(expected)}; "
                "give the reference of that model"
            )
        raise InputError(
            f"{says}+model={name} is for {', '.join(expected)}; leave +model out to have it chosen, or, if this is "
            f"such a model, add model.model_types=[{found}]"
        )


def _recognised(config: Mapping[str, Any], directory: str, library: Library, *, needed: bool) -> Chosen | None:
    """The definition for the `model_type` of a configuration, `None` without one unless it is `needed`."""
    where = f"{directory}/{MODEL_CONFIG}"
    heads = library.heads()
    known: dict[str, str] = {}
    for name, head in heads.items():
        if head.get("variant_of") is None:
            known.update(dict.fromkeys(head.get("model_types") or (), name))
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in known:
        return known[model_type], library.content(known[model_type])
    if not needed:
        return None
    if model_type is None:
        raise InputError(f"{where}: has no model_type; name the model with +model=NAME: {', '.join(heads)}")
    near = difflib.get_close_matches(str(model_type), known, 1)
    hint = f"; the nearest is {near[0]!r} (+model={known[near[0]]})" if near else ""
    raise InputError(
        f"{where}: model_type {model_type!r} is of no model definition{hint}; known: {', '.join(sorted(known))}"
    )
