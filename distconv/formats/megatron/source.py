"""A Megatron checkpoint as a source: parameters over the pieces in its files, and published tensors over the same.

Owns the functions that all sources with Megatron-side names share, a DCP with such names included. Reads nothing.
"""

from __future__ import annotations

from typing import Any

from distconv.errors import raise_if
from distconv.formats.base import Published, Source
from distconv.formats.megatron.bind import MegatronBinding, bind_megatron
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.model import Model
from distconv.formats.select import selection
from distconv.layout.request import SourceLayout
from distconv.models.parameters import Binding
from distconv.models.unbind import restore
from distconv.options import CommonOptions


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
    """The published tensors of bound parameters, with the rows of the vocabulary that the files have.

    Raises:
        InputError: nothing tells which names they have.
    """
    raise_if(
        [
            f"reference={model.followed.directory}: config.json alone does not tell the published names of {each}; "
            "give a reference that names its tensors: with weights, or with model.safetensors.index.json"
            for each in bound.unclear
        ]
    )
    restored = restore(bound.over_hf, parameters)
    return Published(tensors=restored.tensors, left_out=restored.left_out, tied=bound.over_hf.tied, bound=True)
