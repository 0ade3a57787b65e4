"""A Megatron checkpoint as a source: parameters over the pieces in its files, and published tensors over the same.

Owns the functions that all sources with Megatron-side names share, a DCP with such names included. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from distconv.errors import raise_if
from distconv.formats.base import Published, Source
from distconv.formats.megatron.bind import MegatronBinding, bind_megatron
from distconv.formats.megatron.dialect import cut_as_found, spoken_in
from distconv.formats.megatron.fused_projections import unfused
from distconv.formats.megatron.grouped_experts import ungrouped
from distconv.formats.megatron.index import MegatronIndex
from distconv.formats.model import Model
from distconv.formats.select import selection
from distconv.layout.request import SourceLayout
from distconv.models.parameters import Binding
from distconv.models.unbind import restore
from distconv.options import CommonOptions
from distconv.tensors.stored import NamedTensor


class MegatronSource(Source):
    """The source of a job."""

    def __init__(self, options: CommonOptions, index: MegatronIndex, model: Model) -> None:
        self._model = model
        self._bound, self._dialect = bound(options, index, model, options.source_layout)
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
        """The layout of the files, and the dialect of their names."""
        names = {"naming": "megatron", "prefix": "", "dialect": self._dialect, "experts": []}
        return {"source_layout": self._bound.layout.to_json(), "source_names": names}


def bound(
    options: CommonOptions, index: MegatronIndex, model: Model, given: SourceLayout
) -> tuple[MegatronBinding, str]:
    """Bind the files of an index to a model, and name their dialect; `given`: the options on their layout.

    The parameters have the names of the definition, whatever those in the files are.

    Raises:
        InputError: as `bind_megatron`.
    """
    definition, sizes, dialects = model.defined, model.sizes, model.parameter_dialects
    index = unfused(index, definition, sizes)
    spoken = spoken_in(index, definition, dialects, options.source_dialect)
    spoken = cut_as_found(spoken, index, sizes, dialects, is_given=options.source_dialect is not None)
    index = ungrouped(index, spoken.definition, sizes, given.expert_tp)
    selected = selection(options, definition)
    found = bind_megatron(
        spoken.definition, sizes, index, given, selected, model.followed.shapes, tied_head=options.tied_head
    )
    parameters, over_hf = (spoken.in_own_names(each, sizes) for each in (found.parameters, found.over_hf))
    found = replace(found, parameters=parameters, over_hf=over_hf)
    return found, spoken.dialect.name


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
    tensors = (*restored.tensors, *_copies(restored.tensors, model))
    return Published(tensors=tensors, left_out=restored.left_out, tied=bound.over_hf.tied, bound=True)


def _copies(tensors: Sequence[NamedTensor], model: Model) -> Iterator[NamedTensor]:
    """The published copies of tensors, as far as the reference names them."""
    names = {model.spelled(name) for name in model.followed.shapes}
    held = {each.name: each for each in tensors}
    for each in model.defined.copied:
        if each.name in names and each.of in held:
            yield replace(held[each.of], name=each.name)
