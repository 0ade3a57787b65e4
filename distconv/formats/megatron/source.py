"""A Megatron checkpoint as a source: parameters over the pieces in its files, and published tensors over the same.

Owns the functions that all sources with Megatron-side names share, a DCP with such names included. Reads nothing.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from distconv.errors import counted
from distconv.formats.base import Published, Source
from distconv.formats.megatron.bind import MegatronBinding, bind_megatron
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.model import Model
from distconv.formats.select import selection
from distconv.layout.request import SourceLayout
from distconv.models.parameters import Binding
from distconv.models.unbind import beyond_vocabulary, restore, with_vocabulary
from distconv.models.vocabulary import SIZE_NAME, has_vocabulary
from distconv.options import CommonOptions
from distconv.tensors.replicas import Replica, as_padding


class MegatronSource(Source):
    """The source of a job."""

    def __init__(self, options: CommonOptions, index: MegatronIndex, model: Model) -> None:
        self._model = model
        self._bound = bound(options, index, model, options.source_layout)
        self.replicas = self._bound.replicas
        self.notes = (
            *(f"not carried over: {each.name}: {each.reason}" for each in self._bound.dropped),
            *self._bound.absent,
        )

    def parameters(self) -> Binding:
        """The parameters over their pieces."""
        return self._bound.parameters

    def published(self) -> Published:
        """The published tensors of the parameters."""
        return self._published

    @cached_property
    def _published(self) -> Published:
        # The plan of a published result asks, and so does the check of what it is made from.
        return restored(self._bound, self.parameters(), self._model)

    def summary(self) -> dict[str, Any]:
        """The layout of the files."""
        return {"source_layout": self._bound.layout.to_json()}


def bound(options: CommonOptions, index: MegatronIndex, model: Model, given: SourceLayout) -> MegatronBinding:
    """Bind the files of an index to a model; `given`: the options on their layout."""
    selected = selection(options, model.defined)
    shapes = model.followed.shapes
    return bind_megatron(model.defined, model.sizes, index, given, selected, shapes, tied_head=options.tied_head)


def restored(bound: MegatronBinding, parameters: Binding, model: Model) -> Published:
    """The published tensors of bound parameters, with the vocabulary of the reference."""
    restored = restore(bound.over_hf, parameters)
    tensors = list(restored.tensors)
    notes: list[str] = []
    replicas: list[Replica] = []
    if any(has_vocabulary(each.recipe.rule) for each in bound.over_hf.parameters):
        rows = model.sizes.get(SIZE_NAME)
        where = f"reference={model.followed.directory}"
        for cut in beyond_vocabulary(bound.over_hf, tensors, rows):
            count = cut.tensor.shape[0]
            what = f"{cut.name}: {counted(count, 'row')} beyond the {rows} of {where}"
            choice = f"a reference whose config.json says vocab_size {rows + count} keeps them"
            notes.append(f"{what}: left out as padding; {choice}")
            replicas += as_padding(cut, f"{what}: left out, and no padding: neither equal nor zeros; {choice}")
        tensors = with_vocabulary(bound.over_hf, tensors, rows, where)
    return Published(
        tensors=tuple(tensors),
        left_out=restored.left_out,
        tied=bound.over_hf.tied,
        notes=tuple(notes),
        replicas=tuple(replicas),
        bound=True,
    )
