"""A torch_dist checkpoint as a source: its parameters over chunks, and what training says of the model.

Owns the facts of such a source, and what of its training is a contradiction. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distconv.errors import raise_if
from distconv.formats.base import Published, Source
from distconv.formats.dcp.index import DcpIndex
from distconv.formats.dcp.whole import WholeParameters
from distconv.formats.model import Model
from distconv.formats.torch_dist.index import TorchDistDirectory, index_parameters
from distconv.formats.torch_dist.keys import in_local_names, prefix_of, spec_of
from distconv.formats.torch_dist.sizes import Told, contradictions, is_configured_alone
from distconv.models.parameters import Binding
from distconv.options import CommonOptions
from distconv.runtime.hand_out import HandOut
from distconv.tensors.stored import SourceFile

_UNTOLD = "nothing says how training was configured, so that only shapes of tensors are compared with config.json"


@dataclass(frozen=True, kw_only=True)
class TorchDistFacts:
    """The parameters of a checkpoint under the names of the local spec, without the `prefix` of its keys.

    `others`: what is not carried over, in words. `told`: the sizes that training was configured with. `spec`: which way
    to build the model the keys tell, if they do.
    """

    index: DcpIndex
    others: tuple[str, ...]
    told: tuple[Told, ...]
    prefix: str
    spec: str | None

    @property
    def directory(self) -> str:
        """The directory of the iteration."""
        return self.index.directory

    @property
    def config(self) -> None:
        """A checkpoint has no configuration that describes a published model."""

    @property
    def looked_at(self) -> Iterator[SourceFile]:
        """The files of chunks, and those that say what is in them."""
        yield from self.index.described_by
        yield from self.index.files

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it."""
        return {**vars(self), "index": self.index.to_json(), "told": [vars(each) for each in self.told]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TorchDistFacts:
        """The facts in the data of `to_json`."""
        return TorchDistFacts(
            index=DcpIndex.from_json(data["index"]),
            others=tuple(data["others"]),
            told=tuple(Told(**each) for each in data["told"]),
            prefix=data["prefix"],
            spec=data["spec"],
        )


def read_torch_dist(opened: TorchDistDirectory, hand_out: HandOut) -> TorchDistFacts:
    """Locate the parameters of a checkpoint.

    Raises:
        InputError: as `index_parameters`.
    """
    keys = opened.keys
    return TorchDistFacts(
        index=index_parameters(opened, hand_out),
        others=tuple(opened.others()),
        told=opened.told,
        prefix=prefix_of(keys),
        spec=spec_of(set(keys)),
    )


class TorchDistSource(Source):
    """The source of a job."""

    def __init__(self, options: CommonOptions, facts: TorchDistFacts, model: Model) -> None:
        self._facts = facts
        problems = [problem for told in facts.told for problem in contradictions(told, model)]
        if is_configured_alone(model):
            raise_if([f"{each}; give the configuration that the model was trained with" for each in problems])
        dialects = in_local_names(model.parameter_dialects)
        self._whole = WholeParameters(options, facts.index, replace(model, parameter_dialects=dialects))
        self.notes = (
            *(f"not carried over: {each}" for each in facts.others),
            *(f"{each}, which is taken" for each in problems),
            *(() if any(each.sizes for each in facts.told) else (_UNTOLD,)),
            *self._whole.absent,
        )

    def parameters(self) -> Binding:
        """The parameters over their chunks."""
        return self._whole.parameters

    def published(self) -> Published:
        """The published tensors of the parameters."""
        return self._whole.published()

    def summary(self) -> dict[str, Any]:
        """The modules at the top of the model, and how it was built where its keys tell."""
        modules = sorted({name.partition(".")[0] for name in self._facts.index.tensors})
        told = {"prefix": self._facts.prefix, "modules": modules, "spec": self._facts.spec}
        return {"source_names": {"naming": "megatron", "dialect": None, "experts": [], **told}}
