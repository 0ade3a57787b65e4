"""Looking up the chunks of tensors in one `.distcp` file.

Owns the agreement between a file and what `.metadata` says of it, and what of the file is its identity. Reads no tensor
data; which chunks are wanted, `index` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if, reading
from distconv.formats.dcp.metadata import METADATA
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.formats.torch_zip.blobs import stored_within
from distconv.runtime.identity import look_at, look_into
from distconv.runtime.regular_files import open_file
from distconv.tensors.compose import strided
from distconv.tensors.virtual import Index

# The header of a file: so much of its first blob and of its last one, of which there are too many to compare all. Where
# the others are the metadata says, which is compared as a whole.
_FRAME_BYTES = 16 << 10


def locate_chunks(
    part: tuple[str, Sequence[tuple[int, int, str, str, Index]]],
) -> tuple[list[Any], list[tuple[Index, int]]]:
    """Look up chunks in a file: the file's identity, and per chunk strides in elements and offset in bytes.

    `part`: the path, and per chunk, in ascending order, its blob's offset and length in bytes, and the expected name of
    a tensor, element type and shape.

    Raises:
        InputError: the file is missing, too short, or cannot be read; every chunk that is not as expected.
    """
    path, sought = part
    needs = named((name for _, _, name, _, _ in sought), 3)
    with (
        reading(path, f"no such file; {METADATA} says that it holds {needs}; was it copied completely?"),
        open_file(Path(path)) as stream,
    ):
        file = look_at(path, stream.fileno())
        size = file.size
        beyond = [(offset + length, name) for offset, length, name, _, _ in sought if offset + length > size]
        if not beyond:
            file = look_into(file, stream.fileno(), [_begin(*sought[0][:2]), _end(*sought[-1][:2])])
    if beyond:
        raise InputError(
            f"{path}: truncated: it has {size} bytes, and {METADATA} places "
            f"{named((name for _, name in beyond), 3)} in it up to byte {max(beyond)[0]}; was "
            "it copied completely?"
        )
    pieces: list[tuple[Index, int]] = []
    problems: list[str] = []
    with stored_within(Path(path)) as read:
        for offset, length, name, dtype, shape in sought:
            try:
                piece = _piece(read(offset, length), f"{path}, {length} bytes from {offset}", name, dtype, tuple(shape))
            except InputError as error:
                problems += error.problems
            else:
                pieces.append((piece.strides, piece.offset))
    raise_if(problems)
    return file.to_json(), pieces


def _begin(offset: int, length: int) -> tuple[int, int]:
    return offset, offset + min(length, _FRAME_BYTES)


def _end(offset: int, length: int) -> tuple[int, int]:
    return offset + max(length - _FRAME_BYTES, 0), offset + length


def _piece(found: Any, where: str, name: str, dtype: str, shape: Index) -> ArchivedTensor:
    if not isinstance(found, ArchivedTensor):
        raise InputError(
            f"{where}: expected a plain tensor for {name}, found {type(found).__name__}; save the "
            "state dict as plain tensors"
        )
    if (found.dtype, found.shape) != (dtype, shape):
        raise InputError(
            f"{where}: {METADATA} says that {name} has a chunk {dtype} {list(shape)} here, found {found.dtype} "
            f"{list(found.shape)}; are the files of one checkpoint?"
        )
    if not found.is_contiguous:
        try:
            strided(found.dtype, found.shape, found.strides)
        except ValueError as error:
            raise InputError(f"{where}: {name} cannot be read: {error}; save its .contiguous()") from None
    return found
