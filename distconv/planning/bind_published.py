"""Published tensors against the definition of their model, whatever the formats of source and result.

Owns the check of what goes from published names to published names: it is bound as if it were to become parameters, so
every tensor is known, complete and of the shape that the configuration says. What nobody can know is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from distconv.errors import counted, named, raise_if
from distconv.formats.base import Published
from distconv.formats.model import Model, Reference
from distconv.formats.select import selection
from distconv.models.adapters import factor_of
from distconv.models.bind import bind
from distconv.models.definition import Definition
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
    tensors = {each.name: _stored(each, directory) for each in taken}
    reference = model.reference
    if options.fill_from_reference and reference is not None:
        # The head of a tied model is made of its embedding.
        head = definition.tied_sources(tensors)[0] if published.tied else None
        tensors = {name: each for name, each in _filling(reference, definition) if name != head} | tensors
        directory += f", filled from reference={reference.directory}"
    index = SourceIndex(directory=directory, tensors=tensors)
    sizes = model.sizes if published.rows is None else model.sizes.having(**{SIZE_NAME: published.rows})
    binding = bind(definition, sizes, index, selection(options, definition))
    if reference is not None and reference.index is not None:
        return ()
    unknown = [each.tensor.name for each in binding.unconverted if each.tensor.name in tensors]
    if not unknown:
        return ()
    what = f"shapes and number of {counted(len(unknown), 'tensor')}"
    return (f"{what} of which model definition {definition.name} knows no more than names: {named(unknown)}",)


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
