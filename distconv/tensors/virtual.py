"""Virtual tensors: the algebra that every conversion is written in.

A virtual tensor is an element type, a shape and a table of box copies: *this box of that operand lands in this box
of me*. Elements that no copy reaches are zeros. The functions below rewrite the table and return a new tensor; all
of it is integer arithmetic on tuples. This module never touches data, files, torch or numpy.

Operands are numbered: a copy says "operand 2" and the caller knows which stored tensor that is, so one table serves
every layer whose tensors have the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from distconv.tensors.boxes import Found, overlap
from distconv.tensors.dtypes import ITEM_SIZE

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """One box of an operand, never an empty one, that lands in one box of the tensor.

    Dim `i` of the target box runs along dim `dims[i]` of the operand, or along none of them (`None`), and then its
    length is 1. Dims of the operand that no target dim runs along have length 1 in the source box.
    """

    operand: int
    source_start: Index
    target_start: Index
    shape: Index
    dims: tuple[int | None, ...]

    @property
    def source_shape(self) -> Index:
        """Lengths of the box in the operand's own dims."""
        lengths = [1] * len(self.source_start)
        for dim, length in zip(self.dims, self.shape, strict=True):
            if dim is not None:
                lengths[dim] = length
        return tuple(lengths)


@dataclass(frozen=True, slots=True)
class VirtualTensor:
    """An element type, a shape, and the copies that fill the tensor; elements that no copy reaches are zeros."""

    dtype: str
    shape: Index
    copies: tuple[Copy, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * ITEM_SIZE[self.dtype]


def whole(dtype: str, shape: Sequence[int], operand: int = 0) -> VirtualTensor:
    """Operand number `operand`, of this element type and shape, as a virtual tensor."""
    shape = tuple(shape)
    origin = (0,) * len(shape)
    copy = Copy(operand, origin, origin, shape, tuple(range(len(shape))))
    return VirtualTensor(dtype, shape, () if 0 in shape else (copy,))


def zeros(dtype: str, shape: Sequence[int]) -> VirtualTensor:
    """A tensor of zeros, without copies."""
    return VirtualTensor(dtype, tuple(shape), ())


def concat(parts: Sequence[VirtualTensor], dim: int = 0) -> VirtualTensor:
    """The parts one after the other along `dim`.

    Raises:
        ValueError: element types differ, or shapes differ in another dim.
    """
    if not parts:
        raise ValueError("nothing to concatenate")
    first = parts[0]
    _check_dim(first, dim)
    copies: list[Copy] = []
    offset = 0
    for part in parts:
        if part.dtype != first.dtype:
            raise ValueError(f"cannot concatenate {part.dtype} with {first.dtype}")
        if replaced(part.shape, dim, 0) != replaced(first.shape, dim, 0):
            raise ValueError(f"cannot concatenate shapes {list(first.shape)} and {list(part.shape)} along dim {dim}")
        for copy in part.copies:
            start = replaced(copy.target_start, dim, copy.target_start[dim] + offset)
            copies.append(Copy(copy.operand, copy.source_start, start, copy.shape, copy.dims))
        offset += part.shape[dim]
    return VirtualTensor(first.dtype, replaced(first.shape, dim, offset), tuple(copies))


def narrow(tensor: VirtualTensor, dim: int, start: int, length: int) -> VirtualTensor:
    """The elements `start` to `start + length` along `dim`.

    Raises:
        ValueError: the range leaves the tensor.
    """
    _check_dim(tensor, dim)
    if start < 0 or length < 0 or start + length > tensor.shape[dim]:
        raise ValueError(f"range {start}:{start + length} leaves dim {dim} of shape {list(tensor.shape)}")
    copies = []
    for copy in tensor.copies:
        begin, end = copy.target_start[dim], copy.target_start[dim] + copy.shape[dim]
        low, high = max(begin, start), min(end, start + length)
        if low < high:
            kept = copy if (low, high) == (begin, end) else _clipped(copy, dim, low, high)
            moved = replaced(kept.target_start, dim, low - start)
            copies.append(Copy(kept.operand, kept.source_start, moved, kept.shape, kept.dims))
    return VirtualTensor(tensor.dtype, replaced(tensor.shape, dim, length), tuple(copies))


def reordered(tensor: VirtualTensor, dim: int, places: Sequence[int]) -> VirtualTensor:
    """The tensor with element `i` along `dim` at `places[i]`, in copies of one element along it.

    Raises:
        ValueError: there are other places than elements.
    """
    _check_dim(tensor, dim)
    if sorted(places) != list(range(tensor.shape[dim])):
        raise ValueError(f"places along dim {dim} of shape {list(tensor.shape)} are no permutation")
    copies = []
    for copy in tensor.copies:
        first, along, shape = copy.target_start[dim], copy.dims[dim], replaced(copy.shape, dim, 1)
        for number in range(copy.shape[dim]):
            source = copy.source_start
            if along is not None:
                source = replaced(source, along, source[along] + number)
            target = replaced(copy.target_start, dim, places[first + number])
            copies.append(Copy(copy.operand, source, target, shape, copy.dims))
    copies.sort(key=lambda copy: copy.target_start[dim])
    return VirtualTensor(tensor.dtype, tensor.shape, tuple(copies))


def split(tensor: VirtualTensor, lengths: Sequence[int], dim: int = 0) -> list[VirtualTensor]:
    """Consecutive pieces of the given lengths along `dim`.

    Raises:
        ValueError: the lengths do not add up to the tensor's.
    """
    if sum(lengths) != tensor.shape[dim]:
        raise ValueError(f"pieces {list(lengths)} do not add up to dim {dim} of shape {list(tensor.shape)}")
    stops = accumulate(lengths)
    return [narrow(tensor, dim, stop - length, length) for stop, length in zip(stops, lengths, strict=True)]


def chunk(tensor: VirtualTensor, count: int, dim: int = 0) -> list[VirtualTensor]:
    """`count` equal pieces along `dim`.

    Raises:
        ValueError: the size does not divide; nothing is ever truncated.
    """
    _check_dim(tensor, dim)
    length, rest = divmod(tensor.shape[dim], count)
    if rest:
        raise ValueError(f"dim {dim} of shape {list(tensor.shape)} does not divide into {count} equal pieces")
    return split(tensor, [length] * count, dim)


def select(tensor: VirtualTensor, dim: int, position: int) -> VirtualTensor:
    """The slice at `position` along `dim`, without that dim.

    Raises:
        ValueError: the position leaves the tensor.
    """
    picked = narrow(tensor, dim, position, 1)
    copies = tuple(
        Copy(
            copy.operand,
            copy.source_start,
            dropped(copy.target_start, dim),
            dropped(copy.shape, dim),
            copy.dims[:dim] + copy.dims[dim + 1 :],
        )
        for copy in picked.copies
    )
    return VirtualTensor(tensor.dtype, dropped(picked.shape, dim), copies)


def permute(tensor: VirtualTensor, order: Sequence[int]) -> VirtualTensor:
    """The dims in another order: dim `i` of the result is dim `order[i]` of the tensor.

    Raises:
        ValueError: `order` is not a permutation of the tensor's dims.
    """
    if sorted(order) != list(range(len(tensor.shape))):
        raise ValueError(f"{list(order)} is not an order of the dims of shape {list(tensor.shape)}")

    def reordered(index: Index) -> Index:
        return tuple(index[dim] for dim in order)

    copies = tuple(
        Copy(
            copy.operand,
            copy.source_start,
            reordered(copy.target_start),
            reordered(copy.shape),
            tuple(copy.dims[dim] for dim in order),
        )
        for copy in tensor.copies
    )
    return VirtualTensor(tensor.dtype, reordered(tensor.shape), copies)


def invert(tensors: Sequence[VirtualTensor], operands: Sequence[tuple[str, Sequence[int]]]) -> list[VirtualTensor]:
    """The operands as virtual tensors over the tensors: the tables of all tensors, with source and target exchanged.

    `operands` are (element type, shape). Of several tensors that hold the same element (replicated shards) the first is
    its source, so that every element of the result has one source at most. Elements that no tensor holds are zeros;
    `tiling.gaps` counts them.
    """
    backs: list[list[Copy]] = [[] for _ in operands]
    for number, tensor in enumerate(tensors):
        for copy in tensor.copies:
            dims: list[int | None] = [None] * len(copy.source_start)
            for target_dim, source_dim in enumerate(copy.dims):
                if source_dim is not None:
                    dims[source_dim] = target_dim
            back = Copy(number, copy.target_start, copy.source_start, copy.source_shape, tuple(dims))
            backs[copy.operand].append(back)
    return [
        VirtualTensor(dtype, tuple(shape), tuple(_first_of_each(copies)))
        for (dtype, shape), copies in zip(operands, backs, strict=True)
    ]


def _first_of_each(copies: Sequence[Copy]) -> list[Copy]:
    """The copies, each without the target elements that copies before it write."""
    found = Found(copies)
    for copy in copies:
        for piece in remainder(copy, found.near(copy)):
            found.add(piece)
    return found.all


def remainder(copy: Copy, taken: Iterable[Copy]) -> list[Copy]:
    """The copy without the target elements that copies in `taken` write, as disjoint copies."""
    left = [copy]
    for other in taken:
        left = [piece for part in left for piece in _outside(part, other)]
    return left


def replaced(index: Index, dim: int, value: int) -> Index:
    """The index with one entry replaced."""
    return (*index[:dim], value, *index[dim + 1 :])


def dropped(index: Index, dim: int) -> Index:
    """The index without one entry."""
    return index[:dim] + index[dim + 1 :]


def _check_dim(tensor: VirtualTensor, dim: int) -> None:
    if not 0 <= dim < len(tensor.shape):
        raise ValueError(f"shape {list(tensor.shape)} has no dim {dim}")


def _outside(copy: Copy, other: Copy) -> list[Copy]:
    """The copy without the other's target box, as disjoint copies, at most two per dim."""
    common = overlap(copy, other)
    if common is None:
        return [copy]
    pieces: list[Copy] = []
    rest = copy
    for dim, (start, length) in enumerate(zip(*common, strict=True)):
        low, high = rest.target_start[dim], rest.target_start[dim] + rest.shape[dim]
        for piece_low, piece_high in ((low, start), (start + length, high)):
            if piece_low < piece_high:
                pieces.append(_clipped(rest, dim, piece_low, piece_high))
        rest = _clipped(rest, dim, start, start + length)
    return pieces


def _clipped(copy: Copy, dim: int, low: int, high: int) -> Copy:
    source_dim = copy.dims[dim]
    source_start = copy.source_start
    if source_dim is not None:
        source_start = replaced(source_start, source_dim, source_start[source_dim] + low - copy.target_start[dim])
    start, shape = replaced(copy.target_start, dim, low), replaced(copy.shape, dim, high - low)
    return Copy(copy.operand, source_start, start, shape, copy.dims)
