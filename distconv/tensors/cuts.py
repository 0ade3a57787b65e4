"""The tensor-parallel rules that model definitions use: the shard of a parameter that a rank holds.

Owns the cuts and their preconditions. A rule may name a *unit* (attention heads, KV groups): a cut then never goes
through a unit. A size that does not divide is an error, never a truncation; the "uneven" rules give the first ranks one
unit more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from distconv.tensors.virtual import VirtualTensor, chunk, concat, split

Shards = list[VirtualTensor]


@dataclass(frozen=True, kw_only=True)
class TensorParallelRule:
    """A rule `cut`: tensor, number of ranks, number of units → one shard per rank.

    `dim`: the dim that is cut; a tensor without that dim is replicated. `parts`: the number of equal parts of the dim,
    such as 2 for `[gate; up]`, of which every shard has its block. `uneven`: the ranks need not divide the units;
    without units, rows are the units.
    """

    cut: Callable[[VirtualTensor, int, int | None], Shards]
    dim: int | None = None
    parts: int = 1
    uneven: bool = False

    def dim_of(self, shape: Sequence[int]) -> int | None:
        """The dim that is cut of a tensor of this shape; `None` where every rank holds the whole tensor."""
        return self.dim if self.dim is not None and self.dim < len(shape) else None


def replicated(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:  # noqa: ARG001 - whatever the unit
    """Every rank holds the whole tensor."""
    return [tensor] * size


def rows(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:
    """Equal blocks along dim 0: column-parallel linears with their biases, and vocabularies."""
    return _blockwise(tensor, 1, size, unit)


def cols(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:
    """Equal blocks along dim 1: row-parallel linears; their bias (one dim), added after the sum, is replicated."""
    if len(tensor.shape) == 1:
        return replicated(tensor, size)
    _check_units(tensor, 1, size, unit)
    return chunk(tensor, size, dim=1)


def glu(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:
    """Dim 0 is `[gate; up]`: a rank holds its block of gate, then its block of up."""
    return _blockwise(tensor, 2, size, unit)


def rows3(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:
    """Dim 0 is `[q; k; v]`: a rank holds its block of q, then of k, then of v."""
    return _blockwise(tensor, 3, size, unit)


def rows_uneven(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:
    """Dim 0 in blocks of whole units, the first ranks one unit more."""
    return _uneven(tensor, 0, size, unit)


def rows3_uneven(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:
    """Dim 0 is `[q; k; v]`, each in blocks of whole units, the first ranks one unit more."""
    blocks = [_uneven(part, 0, size, unit) for part in chunk(tensor, 3)]
    return [concat(shard) for shard in zip(*blocks, strict=True)]


def cols_uneven(tensor: VirtualTensor, size: int, unit: int | None = None) -> Shards:
    """Dim 1 in blocks of whole units, the first ranks one unit more; a bias is replicated."""
    return replicated(tensor, size) if len(tensor.shape) == 1 else _uneven(tensor, 1, size, unit)


def uneven_lengths(length: int, size: int, unit: int | None = None) -> Sequence[int]:
    """The lengths of `size` blocks of whole units, the first blocks one unit longer; without units, of elements.

    Raises:
        ValueError: `length` is not a multiple of the number of units.
    """
    units = length if unit is None else unit
    width, rest = divmod(length, units)
    if rest:
        raise ValueError(f"{length} does not divide into {units} units")
    share, more = divmod(units, size)
    return [(share + (rank < more)) * width for rank in range(size)]


def _blockwise(tensor: VirtualTensor, parts: int, size: int, unit: int | None) -> Shards:
    blocks = []
    for part in chunk(tensor, parts):
        _check_units(part, 0, size, unit)
        blocks.append(chunk(part, size))
    return [concat(shard) for shard in zip(*blocks, strict=True)]


def _check_units(tensor: VirtualTensor, dim: int, size: int, unit: int | None) -> None:
    if unit is not None and (unit % size or tensor.shape[dim] % unit):
        raise ValueError(
            f"dim {dim} of shape {list(tensor.shape)} does not divide into {size} parts of whole {unit} units"
        )


def _uneven(tensor: VirtualTensor, dim: int, size: int, unit: int | None) -> Shards:
    return split(tensor, uneven_lengths(tensor.shape[dim], size, unit), dim)


TENSOR_PARALLEL_RULES: Mapping[str, TensorParallelRule] = MappingProxyType(
    {
        "replicated": TensorParallelRule(cut=replicated),
        "rows": TensorParallelRule(cut=rows, dim=0),
        "cols": TensorParallelRule(cut=cols, dim=1),
        "glu": TensorParallelRule(cut=glu, dim=0, parts=2),
        "rows3": TensorParallelRule(cut=rows3, dim=0, parts=3),
        "rows_uneven": TensorParallelRule(cut=rows_uneven, dim=0, uneven=True),
        "rows3_uneven": TensorParallelRule(cut=rows3_uneven, dim=0, parts=3, uneven=True),
        "cols_uneven": TensorParallelRule(cut=cols_uneven, dim=1, uneven=True),
    }
)
