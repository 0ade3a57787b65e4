"""The operators that model definitions use: how one Megatron-side parameter is made from its source tensors.

Each is a few calls of the algebra in `virtual`. None has a reverse: the way back is the inverse of its table. An
operator takes the sources in the rule's order and the sizes that the rule names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from distconv.tensors.virtual import VirtualTensor, chunk, concat, permute, zeros


@dataclass(frozen=True, kw_only=True)
class Operator:
    """How many sources an operator takes (`None`: two or more), the sizes it needs, and what it does."""

    sources: int | None
    sizes: tuple[str, ...]
    apply: Callable[..., VirtualTensor]


def rename(source: VirtualTensor) -> VirtualTensor:
    """The source, unchanged."""
    return source


def join(*sources: VirtualTensor) -> VirtualTensor:
    """The sources one after the other along dim 0: `[gate; up]`."""
    return concat(sources)


def group_qkv(query: VirtualTensor, key: VirtualTensor, value: VirtualTensor, groups: int) -> VirtualTensor:
    """Megatron's fused qkv: for each group (KV head) its rows of q, then of k, then of v."""
    if key.shape != value.shape:
        raise ValueError(f"k has shape {list(key.shape)} and v has {list(value.shape)}")
    return _interleaved([query, key, value], groups)


def interleave_heads(fused: VirtualTensor, heads: int) -> VirtualTensor:
    """A fused `[q; k; v]` with one q, k and v per head: for each head its rows of q, of k, of v."""
    return _interleaved(chunk(fused, 3), heads)


def group_qv(query: VirtualTensor, value: VirtualTensor, groups: int) -> VirtualTensor:
    """As `group_qkv` for attention whose k has no bias: zeros stand for it, in the shape of v."""
    return group_qkv(query, zeros(value.dtype, value.shape), value, groups)


def transpose(source: VirtualTensor) -> VirtualTensor:
    """The two dims exchanged."""
    return permute(source, (1, 0))


def _interleaved(parts: Sequence[VirtualTensor], groups: int) -> VirtualTensor:
    pieces = [chunk(part, groups) for part in parts]
    return concat([piece for group in zip(*pieces, strict=True) for piece in group])


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "rename": Operator(sources=1, sizes=(), apply=rename),
        "concat": Operator(sources=None, sizes=(), apply=join),
        "qkv_group": Operator(sources=3, sizes=("groups",), apply=group_qkv),
        "qzv_group": Operator(sources=2, sizes=("groups",), apply=group_qv),
        "qkv_heads": Operator(sources=1, sizes=("heads",), apply=interleave_heads),
        "transpose": Operator(sources=1, sizes=(), apply=transpose),
    }
)
