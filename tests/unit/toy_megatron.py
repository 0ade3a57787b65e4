"""The toy model as files of a Megatron source, in memory: what `read_megatron` finds, and the elements behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from distconv.formats.megatron.bind import MegatronBinding, bind_megatron
from distconv.formats.megatron.index import MegatronIndex, RankFile
from distconv.formats.megatron.plan import make_plan
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.layout.layout import CompleteLayout, StageRows
from distconv.layout.request import SourceLayout
from distconv.layout.tied_head import resolve_head
from distconv.models.parameters import Parameter
from distconv.models.sizes import Sizes
from distconv.tensors.stored import SourceFile, StoredTensor
from tests.unit import toy
from tests.unit.reference import evaluate

# How an array lies in storage: the storage, and the strides of the array in it.
Store = Callable[[np.ndarray], tuple[np.ndarray, tuple[int, ...]]]
DIRECTORY = "/mm/release"


def contiguous(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return array, _strides(array.shape)


def transposed(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """A view whose dims are in the other order in storage."""
    return array.T, _strides(array.T.shape)[::-1]


def spaced(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """A view of the first columns of wider rows."""
    if array.ndim < 2:
        return contiguous(array)
    storage = np.full((*array.shape[:-1], array.shape[-1] + 3), -1)
    storage[..., :-3] = array
    return storage, _strides(storage.shape)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[dim + 1 :])) for dim in range(len(shape)))


def layout(
    text: StageRows = ((3,),), vision: StageRows = ((2,),), *, tp: int = 1, ep: int = 1, **changes: Any
) -> CompleteLayout:
    return CompleteLayout(
        tp=tp,
        pp=len(text[0]),
        vpp=len(text),
        ep=ep,
        stages={"text": text, "vision": vision},
        modality_tp=changes.pop("modality_tp", {}),
        placement=changes.pop("placement", "sequential"),
    )


@dataclass(kw_only=True)
class Source:
    """Files by path, dictionary and name; to be changed at will before `index` is asked for."""

    files: dict[str, dict[str, dict[str, np.ndarray]]]
    store: Store = contiguous
    dtypes: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self._storages: dict[tuple[str, int], np.ndarray] = {}

    def index(self, *, others: tuple[str, ...] = ()) -> MegatronIndex:
        """The index of the files."""
        files = []
        for path, dictionaries in self.files.items():
            tensors = {}
            for key, entries in dictionaries.items():
                for name, array in entries.items():
                    storage, strides = self.store(array)
                    offset = 64 * len(tensors)
                    dtype = (self.dtypes or {}).get(name, "bfloat16")
                    tensors[key, name] = ArchivedTensor(dtype, array.shape, strides, offset)
                    self._storages[f"{DIRECTORY}/{path}", offset] = storage
            rank = tuple(int(number) for number in re.findall(r"\d+", path.partition("/")[0]))
            files.append(RankFile(rank=rank, file=SourceFile(f"{DIRECTORY}/{path}", 1 << 30), tensors=tensors))
        dictionaries = tuple(next(iter(self.files.values())))
        return MegatronIndex(
            directory=DIRECTORY,
            iteration="release",
            dictionaries=dictionaries,
            files=tuple(sorted(files, key=lambda file: file.rank)),
            others=others,
        )

    def stored(self, tensor: StoredTensor) -> np.ndarray:
        """The storage that a stored tensor names."""
        storage = self._storages[tensor.file.path, tensor.offset].reshape(-1)
        return storage[: prod(tensor.shape)].reshape(tensor.shape)

    def elements(self, parameter: Parameter) -> np.ndarray:
        """The elements of a parameter that was bound to the files."""
        operands = [self.stored(each) for each in parameter.sources]
        return evaluate(parameter.recipe.tensor, operands, np.dtype(np.int64))


def source(
    found: CompleteLayout, *, shapes: Mapping[str, tuple[int, ...]] | None = None, tied_head: str = "auto", **given: Any
) -> Source:
    """The files that the toy model is converted to under a layout; `given` are arguments of `toy.bound`."""
    arrays = toy.arrays(shapes)
    binding = resolve_head(toy.bound(shapes, **given), toy.definition(given.get("model")), found, tied_head)
    plan = make_plan(binding, found)
    files: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for file in plan.files:
        dictionaries: dict[str, dict[str, np.ndarray]] = {key: {} for key in plan.dictionaries}
        for entry in plan.entries(file):
            operands = [arrays[each.name] for each in entry.sources]
            dictionaries[entry.key][entry.name] = evaluate(entry.tensor, operands, np.dtype(np.int64))
        files[file.path] = dictionaries
    return Source(files=files)


def bound(
    found: Source,
    given: SourceLayout | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    left_out: Callable[..., str | None] = lambda _: None,
    reference: Mapping[str, tuple[int, ...] | None] = MappingProxyType({}),
    others: tuple[str, ...] = (),
    **changes: Any,
) -> MegatronBinding:
    """The files bound back to the toy model; `changes` are to the `config.json` of the reference."""
    definition = toy.definition(model)
    sizes = Sizes(definition.sizes, toy.config(**changes), "/hf/config.json")
    return bind_megatron(definition, sizes, found.index(others=others), given or SourceLayout(), left_out, reference)
