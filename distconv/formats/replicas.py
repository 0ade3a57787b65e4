"""Stored tensors that must hold the same elements as others, in the form in which their bytes are compared.

Owns how a tensor that lies in storage with strides is compared: as the runs of contiguous bytes that it consists of.
Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from distconv.tensors.compose import substitute
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import StoredTensor
from distconv.tensors.virtual import Copy, VirtualTensor, invert, whole
from distconv.transfer.engine import Shard, Work


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a Megatron file: contiguous storage, and the view of it that the tensor is."""

    stored: StoredTensor
    view: VirtualTensor


@dataclass(frozen=True, slots=True)
class Replica:
    """A piece that is stored once more: it must be equal to `tensor`, which is made from `sources`."""

    sources: tuple[StoredTensor, ...]
    tensor: VirtualTensor
    copy: Piece

    @property
    def nbytes(self) -> int:
        """Size in bytes of what is stored once more."""
        return self.tensor.elements * ITEM_SIZE[self.tensor.dtype]

    def work(self) -> Work:
        """The comparison, for a sink that compares what is made with what is there."""
        stored = self.copy.stored
        nbytes = ITEM_SIZE[stored.dtype]
        return Work(
            self.sources,
            tuple(
                Shard(part, stored.file.path, stored.offset + start * nbytes)
                for start, part in _runs(self.copy, self.tensor)
            ),
        )


def _runs(piece: Piece, tensor: VirtualTensor) -> Iterator[tuple[int, VirtualTensor]]:
    """The stretches of storage that a piece covers: the first element of each, and what must be there."""
    shape = piece.stored.shape
    if piece.view == whole(piece.view.dtype, shape):
        yield 0, tensor
        return
    (held,) = invert([piece.view], [(piece.view.dtype, shape)])
    for copy in held.copies:
        # From this dim on, all of the storage is covered.
        dim = len(shape)
        while dim and copy.shape[dim - 1] == shape[dim - 1]:
            dim -= 1
        for position in product(*(range(length) for length in copy.shape[: dim - 1])) if dim else [()]:
            yield _run(copy, position, shape, tensor)


def _run(
    copy: Copy, position: tuple[int, ...], shape: tuple[int, ...], tensor: VirtualTensor
) -> tuple[int, VirtualTensor]:
    """The run at a position along the first dims of storage: its first element, and its content."""
    source = list(copy.source_start)
    for dim, number in enumerate(position):
        through = copy.dims[dim]
        if through is not None:
            source[through] += number
    lengths = copy.shape[len(position) :]
    content = Copy(0, tuple(source), (0,) * len(lengths), lengths, copy.dims[len(position) :])
    start = sum(number * prod(shape[dim + 1 :]) for dim, number in enumerate(position))
    return start, substitute(VirtualTensor(tensor.dtype, lengths, (content,)), [tensor])
