"""The operators that model definitions use: one Megatron-side parameter as a function of its source tensors.

Owns the names of the operators, and the rows of an operator's sources given the rows of its result. An operator is a
few calls of the algebra in `virtual` on the sources, in the rule's order, and the sizes that the rule names. It never
has a hand-written reverse: the way back is the inverse of its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from distconv.tensors.virtual import VirtualTensor, chunk, concat, permute, reordered, zeros

# Rows of the sources, in the order of the rule; `None` for an unknown number.
Rows = Sequence["int | None"]
# The number of attention heads of the model, `None` if unknown.
Heads = Callable[[], "int | None"]
SourceRows = Callable[[int, Rows, Sequence[int], Heads], Sequence[int]]


class RowsUnknownError(ValueError):
    """The rows of sources do not follow from those of the parameter; the message tells what the definition lacks."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator: its number of sources (`None`: two or more), the names of its sizes, and its function `apply`.

    `source_rows` maps the rows of the parameter, the known rows of sources, the sizes and the number of heads to the
    rows of all sources. It raises `RowsUnknownError` where they do not follow, and `ValueError` where they contradict.

    `transposes`: the rows of the parameter are the columns of its source. `is_identity`: the parameter equals its only
    source. `is_sequence`: the parameter is the concatenation of its sources along dim 0. `is_by_head`: the parameter is
    a fused `[q; k; v]` reordered by head.
    """

    sources: int | None
    sizes: tuple[str, ...]
    apply: Callable[..., VirtualTensor]
    source_rows: SourceRows
    transposes: bool = False
    is_identity: bool = False
    is_sequence: bool = False
    is_by_head: bool = False


def rename(source: VirtualTensor) -> VirtualTensor:
    """The source, unchanged."""
    return source


def join(*sources: VirtualTensor) -> VirtualTensor:
    """The sources one after the other along dim 0: `[gate; up]`."""
    return concat(sources)


def group_qkv(query: VirtualTensor, key: VirtualTensor, value: VirtualTensor, groups: int) -> VirtualTensor:
    """Megatron's fused qkv: per group (KV head) its rows of q, then of k, then of v."""
    if key.shape != value.shape:
        raise ValueError(f"k has shape {list(key.shape)} and v has {list(value.shape)}")
    return _interleaved([query, key, value], groups)


def interleave_heads(fused: VirtualTensor, heads: int) -> VirtualTensor:
    """A fused `[q; k; v]` of multi-head attention, reordered by head: per head its rows of q, of k, of v."""
    return _interleaved(chunk(fused, 3), heads)


def group_qv(query: VirtualTensor, value: VirtualTensor, groups: int) -> VirtualTensor:
    """As `group_qkv` for attention whose k has no bias: zeros stand for it, in the shape of v."""
    return group_qkv(query, zeros(value.dtype, value.shape), value, groups)


def transpose(source: VirtualTensor) -> VirtualTensor:
    """The two dims exchanged."""
    return permute(source, (1, 0))


def in_turn(source: VirtualTensor) -> VirtualTensor:
    """A source whose rows alternate, one of gate and one of up: `[gate; up]`."""
    rows = source.shape[0]
    if rows % 2:
        raise ValueError(f"{rows} rows do not alternate between two")
    return reordered(source, 0, [row // 2 + row % 2 * (rows // 2) for row in range(rows)])


def transposed_in_turn(source: VirtualTensor) -> VirtualTensor:
    """A transposed source whose columns alternate, one of gate and one of up: `[gate; up]`."""
    return in_turn(transpose(source))


def _interleaved(parts: Sequence[VirtualTensor], groups: int) -> VirtualTensor:
    pieces = [chunk(part, groups) for part in parts]
    return concat([piece for group in zip(*pieces, strict=True) for piece in group])


def _rows_of_one(rows: int, *_: object) -> Sequence[int]:
    return [rows]


def _rows_in_sequence(rows: int, known: Rows, *_: object) -> Sequence[int]:
    """Rows of concatenated sources: one source of unknown rows has the remaining ones."""
    if known.count(None) > 1:
        raise RowsUnknownError("sizes instead of any")
    rest = rows - sum(each or 0 for each in known)
    return _checked(rows, [rest if each is None else each for each in known])


def _rows_of_qkv(rows: int, known: Rows, sizes: Sequence[int], heads: Heads) -> Sequence[int]:
    """Rows of q, k and v: k and v have equally many; if both are unknown, heads have as many in q as in k and v."""
    query, *others = known
    (groups,) = sizes
    shared = next((each for each in others if each is not None), None)
    if query is None and shared is None:
        count = heads()
        if count is None:
            raise RowsUnknownError(
                "the number of attention heads as a size named heads, for a language model, or sizes instead of any"
            )
        query = _part(rows, count + 2 * groups) * count
    if shared is None:
        assert query is not None
        shared = _part(rows - query, 2)
    key, value = (shared if each is None else each for each in others)
    return _checked(rows, [rows - key - value if query is None else query, key, value])


def _rows_of_qv(rows: int, known: Rows, sizes: Sequence[int], heads: Heads) -> Sequence[int]:
    query, value = known
    query, _, value = _rows_of_qkv(rows, (query, None, value), sizes, heads)
    return [query, value]


def _part(rows: int, parts: int) -> int:
    part, rest = divmod(rows, parts)
    if rest:
        raise ValueError(f"{rows} rows do not divide into {parts} equal parts")
    return part


def _checked(rows: int, found: Sequence[int]) -> Sequence[int]:
    if min(found) < 1 or sum(found) != rows:
        raise ValueError(f"sources of {' + '.join(map(str, found))} rows do not make {rows} rows")
    return found


# The operator of a rule that names none.
RENAME, CONCAT = "rename", "concat"
OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        RENAME: Operator(sources=1, sizes=(), apply=rename, source_rows=_rows_of_one, is_identity=True),
        CONCAT: Operator(sources=None, sizes=(), apply=join, source_rows=_rows_in_sequence, is_sequence=True),
        "qkv_group": Operator(sources=3, sizes=("groups",), apply=group_qkv, source_rows=_rows_of_qkv),
        "qzv_group": Operator(sources=2, sizes=("groups",), apply=group_qv, source_rows=_rows_of_qv),
        "qkv_heads": Operator(
            sources=1, sizes=("heads",), apply=interleave_heads, source_rows=_rows_of_one, is_by_head=True
        ),
        "in_turn": Operator(sources=1, sizes=(), apply=in_turn, source_rows=_rows_of_one),
        "transpose_in_turn": Operator(
            sources=1, sizes=(), apply=transposed_in_turn, source_rows=_rows_of_one, transposes=True
        ),
        "transpose": Operator(sources=1, sizes=(), apply=transpose, source_rows=_rows_of_one, transposes=True),
    }
)
