"""The tensor-parallel rules that model definitions use: which part of a parameter a rank holds.

Owns the cutting and the conditions under which it may be done. A rule may name a *unit* (attention heads, KV groups):
a cut then never goes through one. A size that does not divide is an error, never a truncation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from distconv.virtual import VirtualTensor, chunk, concat

Shards = list[VirtualTensor]
Rule = Callable[[VirtualTensor, int], Shards]


def replicated(tensor: VirtualTensor, size: int) -> Shards:
    """Every rank holds the whole tensor."""
    return [tensor] * size


def rows(tensor: VirtualTensor, size: int) -> Shards:
    """Column-parallel linears and vocabularies: equal blocks along dim 0; for their biases too."""
    return chunk(tensor, size, dim=0)


def cols(tensor: VirtualTensor, size: int) -> Shards:
    """Row-parallel linears: equal blocks along dim 1. Their bias (one dim) is added after the sum: it is replicated."""
    return replicated(tensor, size) if len(tensor.shape) == 1 else chunk(tensor, size, dim=1)


def glu(tensor: VirtualTensor, size: int) -> Shards:
    """Dim 0 is `[gate; up]`: a rank holds its block of gate, then its block of up."""
    return _blockwise(tensor, 2, size)


def rows3(tensor: VirtualTensor, size: int) -> Shards:
    """Dim 0 is `[q; k; v]`: a rank holds its block of q, then of k, then of v."""
    return _blockwise(tensor, 3, size)


def _blockwise(tensor: VirtualTensor, parts: int, size: int) -> Shards:
    blocks = [chunk(part, size) for part in chunk(tensor, parts)]
    return [concat(shard) for shard in zip(*blocks, strict=True)]


TENSOR_PARALLEL_RULES: Mapping[str, Rule] = MappingProxyType(
    {"replicated": replicated, "rows": rows, "cols": cols, "glu": glu, "rows3": rows3}
)


def shards(rule: str, tensor: VirtualTensor, size: int) -> Shards:
    """The shards of all `size` ranks.

    Raises:
        ValueError: the tensor does not divide.
    """
    return TENSOR_PARALLEL_RULES[rule](tensor, size)
