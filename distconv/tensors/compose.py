"""Tables over tables: virtual tensors whose operands are virtual tensors themselves, or lie in storage with strides.

Owns what unbinding and resplitting need beyond `virtual`: substitution of operands, strided views as boxes of
contiguous tensors, dims merged or split, and boxes that tile a tensor. Integer arithmetic on tuples, like `virtual`;
never data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from operator import add

from distconv.tensors.virtual import Copy, Index, VirtualTensor, dropped, narrow, replaced


def substitute(tensor: VirtualTensor, operands: Sequence[VirtualTensor]) -> VirtualTensor:
    """The tensor over the operands of its operands: operand `i` is replaced by the virtual tensor `operands[i]`.

    All of `operands` number their own operands in one sequence, which is that of the result.

    Raises:
        ValueError: an element of `operands` has another element type, or is smaller than the boxes read from it.
    """
    copies = []
    for copy in tensor.copies:
        operand = operands[copy.operand]
        if operand.dtype != tensor.dtype:
            raise ValueError(f"an operand of a {tensor.dtype} tensor is {operand.dtype}")
        box = box_of(operand, copy.source_start, copy.source_shape)
        copies += [_carried(copy, inner) for inner in box.copies]
    return VirtualTensor(tensor.dtype, tensor.shape, tuple(copies))


def renumbered(tensor: VirtualTensor, first: int) -> VirtualTensor:
    """The tensor with `first` added to its operand numbers."""
    if not first:
        return tensor
    return VirtualTensor(
        tensor.dtype,
        tensor.shape,
        tuple(
            Copy(copy.operand + first, copy.source_start, copy.target_start, copy.shape, copy.dims)
            for copy in tensor.copies
        ),
    )


def strided(dtype: str, shape: Sequence[int], strides: Sequence[int]) -> tuple[Index, VirtualTensor]:
    """A strided view of storage as a virtual tensor: the shape of its contiguous operand, and the view over it.

    Operand and view begin at the same element of the storage. `strides` are in elements, not negative.

    Raises:
        ValueError: elements of the view overlap, or its strides are not multiples of one another.
    """
    order = sorted((dim for dim, length in enumerate(shape) if length > 1), key=lambda dim: strides[dim], reverse=True)
    base = [shape[order[0]]] if order else []
    for dim, inner in zip(order, [*order, None][1:], strict=True):
        step, length = (1, 1) if inner is None else (strides[inner], shape[inner])
        row, rest = divmod(strides[dim], step) if step else (0, 1)
        if rest or row < length:
            raise ValueError(f"a view of shape {list(shape)} with strides {list(strides)} is no box of a tensor")
        base.append(row)
    dims = tuple(order.index(dim) if dim in order else None for dim in range(len(shape)))
    copy = Copy(0, (0,) * len(base), (0,) * len(shape), tuple(shape), dims)
    return tuple(base), VirtualTensor(dtype, tuple(shape), () if 0 in shape else (copy,))


def merge_dims(tensor: VirtualTensor, dim: int) -> VirtualTensor:
    """Dims `dim` and `dim + 1` as one, row-major: `[experts, a, b]` as `[experts * a, b]` for dim 0."""
    rows = tensor.shape[dim + 1]
    copies = []
    for copy in tensor.copies:
        outer = copy.dims[dim]
        for number in range(copy.shape[dim]):
            source = copy.source_start
            if outer is not None:
                source = replaced(source, outer, source[outer] + number)
            start = (copy.target_start[dim] + number) * rows + copy.target_start[dim + 1]
            copies.append(
                Copy(
                    copy.operand,
                    source,
                    (*copy.target_start[:dim], start, *copy.target_start[dim + 2 :]),
                    dropped(copy.shape, dim),
                    (*copy.dims[:dim], *copy.dims[dim + 1 :]),
                )
            )
    shape = (*tensor.shape[:dim], tensor.shape[dim] * rows, *tensor.shape[dim + 2 :])
    return VirtualTensor(tensor.dtype, shape, tuple(copies))


def split_dim(tensor: VirtualTensor, dim: int, outer: int) -> VirtualTensor:
    """Dim `dim` as two, row-major, the first of length `outer`: undoes `merge_dims`.

    Raises:
        ValueError: `outer` does not divide the dim.
    """
    rows, rest = divmod(tensor.shape[dim], outer)
    if rest:
        raise ValueError(f"dim {dim} of shape {list(tensor.shape)} does not divide into {outer} equal pieces")
    copies = []
    for number in range(outer):
        for copy in narrow(tensor, dim, number * rows, rows).copies:
            start = copy.target_start
            copies.append(
                Copy(
                    copy.operand,
                    copy.source_start,
                    (*start[:dim], number, *start[dim:]),
                    (*copy.shape[:dim], 1, *copy.shape[dim:]),
                    (*copy.dims[:dim], None, *copy.dims[dim:]),
                )
            )
    shape = (*tensor.shape[:dim], outer, rows, *tensor.shape[dim + 1 :])
    return VirtualTensor(tensor.dtype, shape, tuple(copies))


def unstack(tensor: VirtualTensor, dims: int) -> dict[Index, VirtualTensor]:
    """The slices at all positions of the first `dims` dims, without these.

    Raises:
        ValueError: the tensor has fewer dims.
    """
    if dims > len(tensor.shape):
        raise ValueError(f"shape {list(tensor.shape)} has no {dims} dims")
    found: dict[Index, list[Copy]] = {position: [] for position in product(*map(range, tensor.shape[:dims]))}
    for copy in tensor.copies:
        outer = copy.target_start[:dims]
        inner = copy.target_start[dims:], copy.shape[dims:], copy.dims[dims:]
        for steps in product(*map(range, copy.shape[:dims])):
            source = list(copy.source_start)
            for step, dim in zip(steps, copy.dims, strict=False):
                if dim is not None:
                    source[dim] += step
            found[tuple(map(add, outer, steps))].append(Copy(copy.operand, tuple(source), *inner))
    return {
        position: VirtualTensor(tensor.dtype, tensor.shape[dims:], tuple(copies)) for position, copies in found.items()
    }


def box_of(tensor: VirtualTensor, start: Index, lengths: Index) -> VirtualTensor:
    """The box of a tensor from index `start` on, with one length per dim.

    Raises:
        ValueError: the box leaves the tensor.
    """
    for dim, (low, length) in enumerate(zip(start, lengths, strict=True)):
        if (low, length) != (0, tensor.shape[dim]):
            tensor = narrow(tensor, dim, low, length)
    return tensor


def contiguous_blocks(shape: Index, elements: int) -> Iterator[tuple[Index, Index]]:
    """Contiguous boxes (start, lengths) of at most `elements` elements that tile a row-major shape, in order."""
    if not prod(shape):
        return
    dim, inner = len(shape), 1
    while dim > 0 and inner * shape[dim - 1] <= elements:
        dim -= 1
        inner *= shape[dim]
    if dim == 0:
        yield (0,) * len(shape), shape
        return
    cut = dim - 1
    length = max(elements // inner, 1)
    for outer in product(*(range(size) for size in shape[:cut])):
        for start in range(0, shape[cut], length):
            starts = (*outer, start) + (0,) * (len(shape) - dim)
            yield starts, (1,) * cut + (min(length, shape[cut] - start),) + shape[dim:]


def _carried(copy: Copy, inner: Copy) -> Copy:
    """The composition of two copies: `copy` reads a box of an operand, and `inner` fills a part of that box."""
    start, shape, dims = list(copy.target_start), list(copy.shape), list(copy.dims)
    for dim, through in enumerate(copy.dims):
        if through is not None:
            start[dim] += inner.target_start[through]
            shape[dim] = inner.shape[through]
            dims[dim] = inner.dims[through]
    return Copy(inner.operand, inner.source_start, tuple(start), tuple(shape), tuple(dims))
