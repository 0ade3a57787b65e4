"""The source index of a torch.distributed.checkpoint directory: tensors as tables over their stored chunks.

Owns the choice of the directory, and the agreement between `.metadata` and the `.distcp` files. Follows no name out of
the directory, reads no tensor data, and executes nothing in the files. `open_dcp` reads the names of all tensors,
`locate` the chunks of wanted ones, so unwanted tensors, such as an optimizer's, cost their metadata only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import add, gt
from pathlib import Path
from typing import Any

from distconv.errors import InputError, named, raise_if
from distconv.formats.base import Held
from distconv.formats.dcp.chunks import locate_chunks
from distconv.formats.dcp.metadata import METADATA, Chunk, Entry, Metadata, read_metadata
from distconv.formats.huggingface.directory import check_directory
from distconv.formats.iterations import iteration_directory, iteration_name
from distconv.formats.torch_zip.archive import ArchivedTensor
from distconv.runtime.hand_out import HandOut, here
from distconv.tensors.compose import renumbered, strided, substitute
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import NamedTensor, SourceFile, StoredTensor
from distconv.tensors.tiling import gaps
from distconv.tensors.virtual import Copy, Index, VirtualTensor

Located = Mapping[tuple[str, Index], tuple[SourceFile, ArchivedTensor]]
_SAVE_AGAIN = "save the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class DcpDirectory:
    """A checkpoint with its parsed metadata, which are in the file `described_by`, and the directory of its files."""

    directory: Path
    metadata: Metadata
    described_by: tuple[SourceFile, ...] = ()

    def held(self) -> Iterator[Held]:
        """The tensors that the metadata names, the optimizer's included."""
        for name, entry in self.metadata.tensors.items():
            yield Held("", name, entry.dtype, entry.shape)

    def unread(self) -> tuple[str, ...]:
        """What lies in the directory and is not read, in sentences."""
        unread = sorted({path.name for path in self.directory.glob("*.distcp")} - self.metadata.files.keys())
        return (f"{self.directory}: not read: {named(unread)}: {METADATA} names nothing in them",) if unread else ()


@dataclass(frozen=True, kw_only=True)
class DcpIndex:
    """The located tensors of one checkpoint by name, and the names of its other entries, which are no tensors.

    `described_by`: the file of its metadata.
    """

    directory: str
    tensors: Mapping[str, NamedTensor]
    others: tuple[str, ...]
    described_by: tuple[SourceFile, ...] = ()

    @property
    def files(self) -> Iterable[SourceFile]:
        """The files that hold the tensors."""
        return {source.file: None for each in self.tensors.values() for source in each.sources}

    def to_json(self) -> dict[str, Any]:
        """Plain data for sharing with other processes; `from_json` reads it. Tables that are one object stay one."""
        files: dict[SourceFile, int] = {}
        tables: dict[tuple[int, tuple[Index, ...]], int] = {}
        contents: list[Any] = []
        tensors = []
        for each in self.tensors.values():
            shapes = tuple(source.shape for source in each.sources)
            number = tables.setdefault((id(each.tensor), shapes), len(tables))
            if number == len(contents):
                table = each.tensor
                copies = [
                    [copy.operand, copy.source_start, copy.target_start, copy.shape, copy.dims] for copy in table.copies
                ]
                contents.append([table.dtype, table.shape, shapes, copies])
            places = [[files.setdefault(source.file, len(files)), source.offset] for source in each.sources]
            tensors.append([each.name, number, places])
        return {
            "directory": self.directory,
            "described_by": [file.to_json() for file in self.described_by],
            "files": [file.to_json() for file in files],
            "tables": contents,
            "tensors": tensors,
            "others": self.others,
        }

    def renamed(self, names: Mapping[str, str]) -> DcpIndex:
        """The index with other names for its tensors."""
        tensors = {names[name]: replace(tensor, name=names[name]) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> DcpIndex:
        """The index described by `to_json`; tensors share tables as before."""
        files = [SourceFile.from_json(each) for each in data["files"]]
        tables = [
            (
                VirtualTensor(
                    dtype, tuple(shape), tuple(Copy(operand, *map(tuple, boxes)) for operand, *boxes in copies)
                ),
                [tuple(each) for each in shapes],
            )
            for dtype, shape, shapes, copies in data["tables"]
        ]
        tensors = {}
        for name, number, places in data["tensors"]:
            table, shapes = tables[number]
            sources = (
                StoredTensor(name, table.dtype, shape, files[file], offset)
                for shape, (file, offset) in zip(shapes, places, strict=True)
            )
            tensors[name] = NamedTensor(tuple(sources), table, name)
        return DcpIndex(
            directory=data["directory"],
            tensors=tensors,
            others=tuple(data["others"]),
            described_by=tuple(map(SourceFile.from_json, data["described_by"])),
        )


def open_dcp(directory: Path, iteration: str | None) -> DcpDirectory:
    """Read the metadata of the checkpoint in a directory, or in its iteration `iteration`, by default the tracker's.

    Raises:
        InputError: no such checkpoint, or metadata that is missing, divided, damaged or malicious.
    """
    check_directory(directory, "source")
    return read_directory(chosen_directory(directory, iteration, METADATA, "__*.metadata", "*.distcp"))


def read_directory(found: Path) -> DcpDirectory:
    """Read the metadata of the checkpoint in a directory.

    Raises:
        InputError: metadata that is missing, divided, damaged or malicious.
    """
    divided = sorted(path.name for path in found.glob("__*.metadata"))
    if divided:
        raise InputError(
            f"source={found}: its metadata is in {len(divided)} files ({named(divided, 3)}), one for each rank that "
            "saved without collectives, which is not supported; load it in training, save it with use_collectives=True"
        )
    if not (found / METADATA).exists():
        started = ", which a save that was interrupted leaves behind" if [*found.glob("*.distcp")] else ""
        raise InputError(f"source={found}: holds no {METADATA}{started}; expected a torch.distributed.checkpoint")
    seen: list[SourceFile] = []
    metadata = read_metadata(found / METADATA, seen)
    return DcpDirectory(directory=found, metadata=metadata, described_by=tuple(seen))


def locate(checkpoint: DcpDirectory, wanted: Callable[[str], bool], hand_out: HandOut = here) -> DcpIndex:
    """Locate the chunks of the tensors with wanted names in their files, without reading data.

    Raises:
        InputError: every chunk that is not at its position in the metadata; every tensor that its chunks do not tile.
    """
    entries = {name: entry for name, entry in checkpoint.metadata.tensors.items() if wanted(name)}
    raise_if(_unsound(checkpoint.directory / METADATA, entries))
    located = _located(checkpoint.directory, entries, hand_out)
    tables: dict[object, tuple[VirtualTensor, list[Index]]] = {}
    tensors = {}
    for name, entry in entries.items():
        pieces = [located[name, chunk.offsets] for chunk in entry.filled]
        strides = [None if piece.is_contiguous else piece.strides for _, piece in pieces]
        cut = _cut(entry), *strides
        if cut not in tables:
            tables[cut] = _table(entry, [piece for _, piece in pieces])
        table, shapes = tables[cut]
        sources = (
            StoredTensor(name, entry.dtype, shape, file, piece.offset)
            for shape, (file, piece) in zip(shapes, pieces, strict=True)
        )
        tensors[name] = NamedTensor(tuple(sources), table, name)
    return DcpIndex(
        directory=str(checkpoint.directory),
        tensors=tensors,
        others=tuple(checkpoint.metadata.blobs),
        described_by=checkpoint.described_by,
    )


def chosen_directory(directory: Path, iteration: str | None, *marks: str) -> Path:
    """A directory that has files whose names match `marks`, or else its iteration `iteration`.

    Raises:
        InputError: no such iteration, or the directory is another one itself.
    """
    if not any(next(directory.glob(pattern), None) for pattern in marks):
        return iteration_directory(directory, iteration)
    if iteration is not None and directory.resolve().name != iteration_name(iteration):
        raise InputError(f"iteration={iteration}: source={directory} is one checkpoint itself; leave iteration out")
    return directory


def _cut(entry: Entry) -> tuple[object, ...]:
    """The key of tensors with equal element type, shape and chunks."""
    return entry.dtype, entry.shape, *((chunk.offsets, chunk.sizes) for chunk in entry.chunks)


def _unsound(path: Path, entries: Mapping[str, Entry]) -> list[str]:
    """The problems of entries on their own, before files are read."""
    problems = []
    cuts: dict[object, str | None] = {}
    for name, entry in entries.items():
        where = f"{path}: tensor {name}"
        if entry.dtype not in ITEM_SIZE:
            problems.append(f"{where}: has the element type {entry.dtype}; supported: {', '.join(ITEM_SIZE)}")
        cut = _cut(entry)
        if cut not in cuts:
            cuts[cut] = _misfit(entry)
        if cuts[cut] is not None:
            problems.append(f"{where}: {cuts[cut]}; {_SAVE_AGAIN}")
        for chunk in entry.filled:
            box = f"its chunk {list(chunk.sizes)} at {list(chunk.offsets)}"
            if len(chunk.places) > 1:
                found = ", ".join(f"{place.file} at {place.offset}" for place in chunk.places[:5])
                problems.append(f"{where}: {box} is named {len(chunk.places)} times: {found}; {_SAVE_AGAIN}")
            elif not chunk.places:
                problems.append(f"{where}: {box} is stored nowhere; {_SAVE_AGAIN}")
            elif chunk.places[0].transforms:
                problems.append(
                    f"{where}: {box} is stored through {named(chunk.places[0].transforms)}, which is not supported; "
                    "save it without extensions"
                )
    return problems


def _misfit(entry: Entry) -> str | None:
    """The reason why the chunks do not tile the tensor, `None` if they do."""
    for chunk in entry.filled:
        if any(map(gt, map(add, chunk.offsets, chunk.sizes), entry.shape)):
            return f"its chunk {list(chunk.sizes)} at {list(chunk.offsets)} leaves its shape {list(entry.shape)}"
    try:
        missing = gaps(_whole(entry))
    except ValueError as error:
        return f"its chunks overlap: {error}"
    return (
        f"its chunks leave out {missing} of the {prod(entry.shape)} elements of shape {list(entry.shape)}"
        if missing
        else None
    )


def _whole(entry: Entry) -> VirtualTensor:
    """The tensor as a table over its chunks, without empty ones."""
    dims = tuple(range(len(entry.shape)))
    origin = (0,) * len(dims)
    copies = (Copy(number, origin, chunk.offsets, chunk.sizes, dims) for number, chunk in enumerate(entry.filled))
    return VirtualTensor(entry.dtype, entry.shape, tuple(copies))


def _table(entry: Entry, pieces: Sequence[ArchivedTensor]) -> tuple[VirtualTensor, list[Index]]:
    """The tensor as a table over its stored chunks, and the shapes of these in storage."""
    whole = _whole(entry)
    if all(piece.is_contiguous for piece in pieces):
        return whole, [piece.shape for piece in pieces]
    views = [strided(piece.dtype, piece.shape, piece.strides) for piece in pieces]
    operands = [renumbered(view, number) for number, (_, view) in enumerate(views)]
    return substitute(whole, operands), [shape for shape, _ in views]


def _located(directory: Path, entries: Mapping[str, Entry], hand_out: HandOut) -> Located:
    """The non-empty chunks of all entries, located in their files."""
    per_file: dict[str, list[tuple[int, int, str, Chunk]]] = defaultdict(list)
    for name, entry in entries.items():
        for chunk in entry.filled:
            (place,) = chunk.places
            per_file[place.file].append((place.offset, place.length, name, chunk))
    files, parts = [], []
    for file_name, unordered in sorted(per_file.items()):
        chunks = sorted(unordered, key=lambda each: each[0])
        files.append((str(directory / file_name), chunks))
        sought = [(offset, length, name, entries[name].dtype, chunk.sizes) for offset, length, name, chunk in chunks]
        parts.append((str(directory / file_name), sought))
    located: dict[tuple[str, Index], tuple[SourceFile, ArchivedTensor]] = {}
    for (_, chunks), (data, pieces) in zip(files, hand_out(locate_chunks, parts), strict=True):
        file = SourceFile.from_json(data)
        for (_, _, name, chunk), (strides, offset) in zip(chunks, pieces, strict=True):
            piece = ArchivedTensor(entries[name].dtype, chunk.sizes, tuple(strides), offset)
            located[name, chunk.offsets] = file, piece
    return located
