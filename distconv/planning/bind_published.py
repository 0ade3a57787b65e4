"""Published tensors against the definition of their model, whatever the formats of source and result.

Owns the check of what goes from published names to published names: it is bound as if it were to become parameters, so
every tensor is known, complete and of the shape that the configuration says. What nobody can know is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from distconv.errors import counted, named, raise_if
from distconv.formats.base import Published
from distconv.formats.model import Model, Reference
from distconv.formats.select import selection
from distconv.models.adapters import factor_of
from distconv.models.bind import bind
from distconv.models.definition import Definition
from distconv.models.experts import as_published
from distconv.models.language_model import contradictions
from distconv.models.names import Explanations, pattern_of
from distconv.models.vocabulary import SIZE_NAME
from distconv.options import CommonOptions
from distconv.tensors.stored import NamedTensor, SourceFile, SourceIndex, StoredTensor


def bind_published(published: Published, options: CommonOptions, model: Model, directory: str) -> tuple[str, ...]:
    """Bind the published tensors of a source in a directory; in words, what of them cannot be checked.

    With `fill_from_reference`, what they lack is the reference's.

    Raises:
        InputError: every tensor that is missing, unknown, or of the wrong shape or element type.
    """
    definition = model.definition
    if published.bound and not options.fill_from_reference:
        # A source may hold a part of a model, so its parameters decided what is complete.
        return ()
    if definition is None:
        shapes = {each.name: each.tensor.shape for each in published.tensors}
        raise_if(contradictions(shapes, model.config, model.config_path))
        # Experts that are not complete, or not as large as the configuration says, are an error.
        model.spellings.experts.forms(shapes)
        if model.reference is not None and model.reference.shard_files is not None:
            what = "what neither the reference nor config.json says of the tensors"
        else:
            what = "names, shapes and number of the tensors"
        empty = [each.name for each in published.tensors if not each.tensor.elements]
        return (
            f"{what}: no model definition is for model_type {model.config.get('model_type')!r} in {model.config_path}",
            *([f"{counted(len(empty), 'tensor')} without elements: {named(empty)}"] if empty else []),
        )
    # Of adapters alone, what lies beside them is listed as not converted.
    only = definition.adapters == "only"
    taken = [each for each in published.tensors if not only or factor_of(each.name) is not None]
    raise_if(list(_doubled(taken, directory)))
    taken = model.spellings.experts.respelled(taken, as_published)
    tensors = {each.name: _stored(each, directory) for each in taken}
    reference = model.reference
    followed = [] if reference is None else _of_reference_alone(tensors, model, reference)
    if options.fill_from_reference and reference is not None:
        # The head of a tied model is made of its embedding.
        head = definition.tied_sources(tensors)[0] if published.tied else None
        tensors = {name: each for name, each in _filling(reference, definition) if name != head} | tensors
        directory += f", filled from reference={reference.directory}"
    checked = {name: each for name, each in tensors.items() if name not in followed}
    sizes = model.sizes if published.rows is None else model.sizes.having(**{SIZE_NAME: published.rows})
    index = SourceIndex(directory=directory, tensors=checked)
    binding = bind(definition, sizes, index, selection(options, definition))
    if reference is not None and reference.index is not None:
        what = f"{counted(len(followed), 'tensor')} that model definition {definition.name} does not know"
        return (f"{what}; names and shapes are those of the reference: {named(followed)}",) if followed else ()
    unknown = [each.tensor.name for each in binding.unconverted if each.tensor.name in tensors]
    if not unknown:
        return ()
    what = f"shapes and number of {counted(len(unknown), 'tensor')}"
    return (f"{what} of which model definition {definition.name} knows no more than names: {named(unknown)}",)


def _of_reference_alone(tensors: Mapping[str, StoredTensor], model: Model, reference: Reference) -> list[str]:
    """The names of tensors that no rule knows, but the reference has: it has been followed in names and shapes."""
    definition = model.defined
    explained, known = Explanations(definition, {}, model.sizes), pattern_of(definition.rules)
    stored = {} if reference.index is None else reference.index.tensors
    listed = {definition.spelled(name) for name in stored}
    return [name for name in tensors if name in listed and not known.fullmatch(name) and explained.reason(name) is None]


def _doubled(tensors: Iterable[NamedTensor], directory: str) -> Iterator[str]:
    """A problem for each name, in the definition's spelling, that several tensors have."""
    found: dict[str, list[NamedTensor]] = {}
    for each in tensors:
        found.setdefault(each.name, []).append(each)
    for name, doubled in found.items():
        if len(doubled) > 1:
            spellings = dict.fromkeys(source.name for each in doubled for source in each.sources)
            yield f"{directory}: {' and '.join(spellings)} are two spellings of the same tensor {name}; remove one"


def _stored(tensor: NamedTensor, directory: str) -> StoredTensor:
    """The tensor as messages speak of it: in the file that it begins in."""
    file = tensor.sources[0].file if tensor.sources else SourceFile(directory, 0)
    return StoredTensor(tensor.name, tensor.tensor.dtype, tensor.tensor.shape, file, 0)


def _filling(reference: Reference, definition: Definition) -> Iterator[tuple[str, StoredTensor]]:
    for each in () if reference.index is None else reference.index.tensors.values():
        name = definition.spelled(each.name)
        yield name, replace(each, name=name)
