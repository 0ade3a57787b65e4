"""Looking at the source: everything that planning needs to know, read once by rank 0.

Owns the choice of the reference; `choice` makes that of the model definition. What is in the files, their format knows;
read are headers, metadata and JSON only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distconv.errors import InputError, raise_if
from distconv.formats.base import Format, Opened
from distconv.formats.huggingface.directory import check_directory
from distconv.formats.huggingface.peft_config import read_scaling
from distconv.formats.huggingface.reference import read_reference
from distconv.formats.iterations import chosen_iteration
from distconv.formats.model import Model, Reference
from distconv.formats.provenance import PROVENANCE_NAME, Provenance, newer_note, read_provenance
from distconv.formats.registry import (
    Options,
    format_named,
    found_in,
    source_contradictions,
    target_contradictions,
    unknown_problem,
)
from distconv.models.library import Library
from distconv.models.scaling import Scaling
from distconv.planning.choice import Choice, Chosen
from distconv.planning.facts import Facts, model_of
from distconv.planning.suggested import Suggested
from distconv.runtime.hand_out import HandOut, here
from distconv.tensors.stored import SourceFile
from distconv.training.files import told_by_files
from distconv.training.told import completed, words_of


def look(options: Options, chosen: Chosen | None, library: Library, hand_out: HandOut = here) -> Facts:
    """The facts of a job; `chosen` is the definition that the user named.

    The files of what training saved are many: to read them is handed out, as `registry.tasks`.

    Raises:
        InputError: options that contradict, a directory that is not a checkpoint, or no definition for it.
    """
    raise_if(list(target_contradictions(options)))
    asked, configured = options.layout, list[SourceFile]()
    if asked.from_ is not None:
        told = told_by_files(asked.from_, configured)
        options = replace(options, layout=completed(asked, told))
    facts = _look(options, chosen, library, hand_out)
    if asked.from_ is None:
        return facts
    return replace(
        facts,
        layout=options.layout.shaping(),
        described_by=(*configured, *facts.described_by),
        notes=(*words_of(asked, options.layout), *facts.notes),
    )


def _look(options: Options, chosen: Chosen | None, library: Library, hand_out: HandOut) -> Facts:
    form = format_in(options, "source")
    raise_if(list(source_contradictions(options, form)))
    adapters = chosen is not None and chosen[1].get("adapters") == "only"
    opened = form.open(options, adapters=adapters, hand_out=hand_out)
    target = format_named(options.target_format)
    needed = not target.is_published(options) or (opened.config is None and not opened.names_suffice)
    by_names = not needed and not target.needs_config
    return facts_of(options, form, opened, chosen, library, needed=needed, by_names=by_names)


def format_in(options: Options, key: str) -> Format[Options]:
    """The format of the source of these options, which the user has named by the option `key`.

    Raises:
        InputError: it is no checkpoint, or more than one.
    """
    check_directory(options.source, key)
    found = found_in(options.source, options.iteration)
    if problem := unknown_problem(found, key) or found.mixed_problem:
        raise InputError(problem)
    return found.form


def opened_as_any(form: Format[Options], options: Options, hand_out: HandOut) -> Opened:
    """The source, opened as a model or else as adapters alone.

    Raises:
        InputError: neither; why it is no model.
    """
    try:
        return form.open(options, adapters=False, hand_out=hand_out)
    except InputError as error:
        try:
            return form.open(options, adapters=True, hand_out=hand_out)
        except InputError:
            raise error from None


def facts_of(
    options: Options,
    form: Format[Options],
    opened: Opened,
    chosen: Chosen | None,
    library: Library,
    *,
    needed: bool,
    by_names: bool = False,
) -> Facts:
    """The facts of an opened source, with its model.

    `needed`: a model that no definition is for is refused; `by_names`: nothing need say what model it is, if neither
    source nor user do.

    Raises:
        InputError: no definition, or another than the source is of; files that are damaged.
    """
    model = Choice(library, chosen, opened)
    seen: list[SourceFile] = []
    reference = None
    record = read_provenance(opened.directory, seen) if opened.config is None else Provenance()
    known = options.reference is not None or record.reference is not None or chosen is not None
    if opened.config is not None or (by_names and not known):
        config, directory = opened.config or {}, str(opened.directory)
        if not opened.adapters and opened.config is not None:
            model.recognise(config, directory, needed=needed)
        if form is format_named(options.target_format) and not form.holds_iterations:
            # The same in another element type.
            reference = read_reference(options.source, "source")
    else:
        reference = _reference(options, record, opened.directory)
        config, directory = reference.config, reference.directory
        model.remember(record, needed=needed)
        model.recognise(config, directory, needed=needed, is_adapter=reference.is_adapter)
    name, content = model.chosen or (None, {})
    dialects = library.dialects()
    parsed = model_of(name, content, reference, config, directory, dialects)
    scaling = _scaling(parsed, opened, record, seen)
    chosen_here = chosen_iteration(options.source, opened.directory) if options.iteration is None else ()
    parsed = replace(parsed, scaling=scaling)
    suggested = Suggested.by(record, opened.directory, form, dialects)
    return Facts(
        kind=form.name,
        source=suggested.heeded(options, lambda completed: opened.read(parsed, completed.source_dialect)),
        reference=reference,
        model=name,
        definition=content,
        definition_file=None if name is None else library.own_file(name),
        iteration=opened.iteration,
        scaling=scaling,
        dialects=dialects,
        described_by=tuple(seen),
        suggested=suggested,
        notes=(*chosen_here, *newer_note(record, opened.directory), *opened.notes),
        parsed=parsed,
    )


def _scaling(model: Model, opened: Opened, record: Provenance, seen: list[SourceFile]) -> Scaling | None:
    """The scaling that is told by the directory of the model or of its adapters, or by the provenance of the source.

    Raises:
        InputError: the two contradict.
    """
    definition, reference = model.definition, model.reference
    if definition is None or definition.adapters is None:
        return None
    if reference is None:
        return read_scaling(opened.directory, (each.name for each in opened.held()), definition, seen)
    if definition.adapters == "only" and not reference.is_adapter:
        return record.scaling
    told = read_scaling(Path(reference.directory), reference.shard_files or (), definition, seen)
    if told is not None and record.scaling is not None and not told.agrees_with(record.scaling):
        raise InputError(
            f"{told.where}: scales adapters otherwise than the source does, by "
            f"{record.scaling.where}: lora_alpha, use_rslora or alpha_pattern differ; give its own adapters"
        )
    return told or record.scaling


def _reference(options: Options, record: Provenance, directory: Path) -> Reference:
    """The reference of a source that does not describe itself: named by the user, or by its provenance."""
    if options.reference is not None:
        return read_reference(options.reference, "reference")
    if record.reference is None:
        ignored = "".join(f"; {note}" for note in newer_note(record, directory))
        raise InputError(
            f"reference is missing: give reference=DIR, the Hugging Face directory of the model that {directory} was "
            f"trained from; its config.json says the sizes{ignored}"
        )
    try:
        return read_reference(Path(record.reference), "reference")
    except InputError as error:
        where = directory / PROVENANCE_NAME
        first = f"{where}: the reference that it names cannot be used; give one with reference=DIR"
        raise InputError([first, *error.problems]) from None
