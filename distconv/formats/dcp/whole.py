"""Tensors that are whole parameters, as a Megatron source of one rank.

Owns the binding of what a checkpoint without ranks holds under Megatron-side names. Reads nothing.
"""

from __future__ import annotations

from distconv.formats.base import Published
from distconv.formats.dcp.index import DcpIndex
from distconv.formats.iterations import RELEASE
from distconv.formats.megatron.index import MegatronIndex, RankFile
from distconv.formats.megatron.source import bound, restored
from distconv.formats.model import Model
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.request import SourceLayout
from distconv.models.over import over
from distconv.models.parameters import Binding
from distconv.options import CommonOptions
from distconv.tensors.stored import SourceFile


class WholeParameters:
    """The parameters of a model over the tensors of an index.

    `dialect` is that of their names; `absent` are the reasons why rules have nothing in the index.
    """

    def __init__(self, options: CommonOptions, index: DcpIndex, model: Model) -> None:
        tensors = {
            ("model", each.name): ArchivedTensor.contiguous(each.tensor.dtype, each.tensor.shape, 0)
            for each in index.tensors.values()
        }
        ranks = MegatronIndex(
            directory=index.directory,
            iteration=RELEASE,
            dictionaries=("model",),
            files=(RankFile(rank=(0,), file=SourceFile(index.directory, 0), tensors=tensors),),
            others=(),
        )
        self._model = model
        self._bound, self.dialect = bound(options, ranks, model, SourceLayout())
        self.parameters: Binding = over(self._bound.parameters, index.tensors)
        self.absent = self._bound.absent

    def published(self) -> Published:
        """The published tensors of the parameters."""
        return restored(self._bound, self.parameters, self._model)
