"""Quantised weights of a Hugging Face directory: which of its tensors are pieces of one, so that they count as one.

Owns the checks that pieces belong together. Everything after it sees tensors of a plain type. Computes nothing:
`tensors.quantised` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from distconv.errors import InputError, counted, named, raise_if, reading
from distconv.formats.config_dtypes import main_dtype
from distconv.formats.huggingface.schemes import OF_ACTIVATIONS, Scheme, scheme_in
from distconv.runtime.hand_out import AT_ONCE, on_threads
from distconv.runtime.regular_files import open_file
from distconv.tensors.dtypes import ITEM_SIZE
from distconv.tensors.stored import Quantised, SourceFile, SourceIndex, StoredTensor, scale_shape

_OTHERWISE = "download the directory again, or give the model as it was before it was quantised"


def lifted(index: SourceIndex, scheme: Scheme) -> SourceIndex:
    """The tensors of a directory, of which quantised ones are one instead of their pieces.

    They count as what most of the others are, so that a parameter may be made of both.

    Raises:
        InputError: every piece that is missing, that belongs to nothing, or whose shape or element type does not fit
            the others.
    """
    tensors, problems = index.tensors, list[str]()
    plain = main_dtype((each.dtype, each.nbytes) for each in tensors.values() if not each.name.endswith(scheme.scales))
    bases = {name: base for name, each in tensors.items() if (base := scheme.base(each)) is not None}
    taken = {name for base in bases.values() for name in scheme.beside(base)}
    shapes = _said_shapes(scheme, bases.values(), tensors)
    found: dict[str, StoredTensor] = {}
    for name, each in tensors.items():
        if (base := bases.get(name)) is not None:
            made, wrong = _one(scheme, base, tensors, shapes, plain or "bfloat16")
            problems += wrong
            if base in found or (base != name and base in tensors):
                problems.append(f"{each.file.path}: {name} is quantised, but there is {base}, too")
            if made is not None:
                found[base] = made
        elif name not in taken:
            found[name] = each
    problems += _left_over(scheme, found, index.directory)
    raise_if([f"{each}; {_OTHERWISE}" for each in problems])
    return replace(index, tensors=found)


def undecided(index: SourceIndex, config: Mapping[str, Any], where: str) -> str | None:
    """What to say to whoever converts a directory with quantised weights of a known scheme; nothing without such."""
    try:
        scheme = scheme_in(config, where)
    except InputError:
        return None
    if scheme is None or all(scheme.base(each) is None for each in index.tensors.values()):
        return None
    return (
        f"{index.directory}: its weights are quantised: {scheme.words}; give dtype=bfloat16, float16 or float32, and "
        "they are dequantised on the way"
    )


def lifted_names(files: Mapping[str, str], scheme: Scheme) -> Mapping[str, str]:
    """The files of tensors by name, where nothing but names is known, with quantised ones instead of their pieces."""
    found = {scheme.whole(name, scheme.codes) for name in files}
    bases = {base for base in found if base is not None and scheme.piece(base, scheme.scales) in files}
    beside = {name for base in bases for name in scheme.beside(base)}
    named_so = {scheme.piece(base, scheme.codes): base for base in bases}
    return {named_so.get(name, name): file for name, file in files.items() if name not in beside}


def words_of(index: SourceIndex, before: SourceIndex, scheme: Scheme) -> str:
    """What is said of a directory whose quantised tensors are taken as one each; nothing where none is."""
    count = sum(each.quantised is not None for each in index.tensors.values())
    if not count:
        return ""
    static = sum(name.endswith(OF_ACTIVATIONS) for name in before.tensors.keys() - index.tensors.keys())
    scales = f"; {counted(static, 'scale')} of activations left out" if static else ""
    return f"{index.directory}: {counted(count, 'tensor')} quantised: {scheme.words}{scales}"


def _one(
    scheme: Scheme, base: str, tensors: Mapping[str, StoredTensor], said: Mapping[str, tuple[int, ...]], dtype: str
) -> tuple[StoredTensor | None, list[str]]:
    """A quantised tensor made of its pieces, and what is wrong with them."""
    codes, name = tensors[scheme.piece(base, scheme.codes)], scheme.piece(base, scheme.scales)
    scales = tensors.get(name)
    where = f"{codes.file.path}: {codes.name}"
    problems = [
        f"{where}: has {each} beside it, which {scheme.words} does not have: no way to dequantise it is known"
        for each in (scheme.piece(base, end) for end in scheme.refused)
        if each in tensors
    ]
    if scales is None:
        return None, [*problems, f"{where}: is {codes.dtype}, and {name}, its scale, is missing"]
    if scales.dtype not in scheme.of_scales:
        expected = ", ".join(scheme.of_scales)
        problems.append(f"{scales.file.path}: {scales.name} is {scales.dtype}, expected one of {expected}")
    shape = scheme.unpacked(codes.shape, said.get(base, ()))
    if shape is None:
        says = f", and {scheme.piece(base, scheme.shape or '')} says {list(said[base])}" if base in said else ""
        problems.append(f"{where}: has shape {list(codes.shape)}{says}: not that of {scheme.words}")
    elif scales.shape != scale_shape(shape, scheme.block):
        problems.append(
            f"{scales.file.path}: {scales.name} has shape {list(scales.shape)}, expected "
            f"{list(scale_shape(shape, scheme.block))}: {scheme.words} of a tensor of shape {list(shape)}"
        )
    if problems or shape is None:
        return None, problems
    numbers, words = scheme.numbers or scales.dtype, ITEM_SIZE[scheme.stored]
    how = Quantised(scheme.code, scheme.bits, words, scheme.block, scales, numbers, scheme.turned)
    return StoredTensor(base, dtype, shape, codes.file, codes.offset, how), []


def _left_over(scheme: Scheme, found: Mapping[str, StoredTensor], directory: str) -> Iterator[str]:
    """What is wrong with pieces that belong to no quantised tensor."""
    ends = [each for each in (scheme.scales, scheme.shape) if each is not None]
    owners = {name: owner for name in found for end in ends if (owner := scheme.whole(name, end)) is not None}
    if astray := [name for name, owner in owners.items() if owner in found]:
        yield (
            f"{directory}: {counted(len(astray), 'tensor')} of scales beside weights that are not quantised: "
            f"{named(astray)}"
        )
    if alone := [name for name, owner in owners.items() if owner not in found]:
        yield f"{directory}: {counted(len(alone), 'tensor')} of scales without what they are for: {named(alone)}"


def _said_shapes(
    scheme: Scheme, bases: Iterable[str], tensors: Mapping[str, StoredTensor]
) -> Mapping[str, tuple[int, ...]]:
    """The shapes that tensors say of themselves, by name: data, read from all files at a time."""
    if scheme.shape is None:
        return {}
    names = {base: scheme.piece(base, scheme.shape) for base in bases}
    pieces = {base: tensors[name] for base, name in names.items() if name in tensors}
    wrong = [each for each in pieces.values() if each.dtype not in ("int64", "int32") or each.shape != (2,)]
    raise_if(
        [
            f"{each.file.path}: {each.name} is {each.dtype} {list(each.shape)}, expected 2 integers; {_OTHERWISE}"
            for each in wrong
        ]
    )
    ordered = sorted(pieces.items(), key=lambda item: (item[1].file.path, item[1].offset))
    groups = [(file, list(group)) for file, group in groupby(ordered, key=lambda item: item[1].file)]
    return {base: shape for read in on_threads(_read_shapes, groups, AT_ONCE) for base, shape in read}


def _read_shapes(group: tuple[SourceFile, list[tuple[str, StoredTensor]]]) -> list[tuple[str, tuple[int, ...]]]:
    file, pieces = group
    found = []
    with reading(file.path), open_file(Path(file.path)) as stream:
        for base, each in pieces:
            stream.seek(each.offset)
            size = ITEM_SIZE[each.dtype]
            data = stream.read(2 * size)
            found.append((base, tuple(int.from_bytes(data[at : at + size], "little", signed=True) for at in (0, size))))
    return found
