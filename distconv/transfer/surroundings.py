"""Proving what is beside the tensors of an existing result: side files, and files that this job would not have made.

Owns which of the latter are a difference: those that a reader would take for a part of the result. Called by rank 0
alone; writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from distconv.commit.area import is_hidden
from distconv.commit.target import Target
from distconv.errors import named, system_problem
from distconv.formats.base import FileFormat
from distconv.formats.frame import first_difference, text_frame
from distconv.runtime.regular_files import read_file
from distconv.tensors.stored import SourceFile
from distconv.transfer.sources import SourceFiles
from distconv.transfer.verify import Compared

_NAMED = 20


def compare_beside(
    form: FileFormat, directory: Path, beside: Mapping[str, bytes | SourceFile], sources: SourceFiles
) -> Compared:
    """Compare the files beside the tensors, given as in `FileFormat.beside`, byte for byte."""
    compared = Compared()
    for name, content in beside.items():
        _compare(form, directory, name, content, sources, compared)
    return compared


def look_around(expected: Collection[str], target: Target) -> Compared:
    """Look for files beside the expected ones of a result, which are given by path below it."""
    compared = Compared()
    strays = {target.result: list(_strays(target.result, frozenset(expected)))}
    if target.tracker is not None:
        known = {target.result.name, target.tracker.name}
        names = sorted(path.name for path in target.directory.iterdir())
        strays[target.directory] = [name for name in names if name not in known and not is_hidden(name)]
    for directory, found in strays.items():
        taken = [name for name in found if any(PurePosixPath(name).match(each) for each in target.readers_names)]
        compared.differences.extend(
            f"{directory / name}: is not expected, and readers may take it for a part of the result; move it elsewhere"
            for name in taken
        )
        others = [name for name in found if name not in taken]
        if others:
            compared.notes.append(f"{directory}: holds more than belongs to the result: {named(others, _NAMED)}")
    return compared


def wrong_tracker(target: Target) -> list[str]:
    """The difference of a tracker that does not name the result, in words."""
    if target.tracker is None or target.iteration is None:
        return []
    try:
        found = read_file(target.tracker)
    except OSError as error:
        return [system_problem(f"{target.tracker}: expected {target.iteration!r}, cannot be read", error)]
    if found == target.iteration.encode():
        return []
    return [f"{target.tracker}: expected {target.iteration!r}, found {found.decode(errors='replace')!r:.80}"]


def _compare(
    form: FileFormat,
    directory: Path,
    name: str,
    content: bytes | SourceFile,
    sources: SourceFiles,
    compared: Compared,
) -> None:
    """Compare one file, and add to what was found."""
    path = directory / name
    try:
        expected = b"".join(sources.pieces(content)) if isinstance(content, SourceFile) else content
        at = first_difference(path, text_frame(expected))
    except OSError as error:
        compared.differences.append(system_problem(f"{path}: cannot be compared", error))
        return
    if at is not None:
        source = f"that of {content.path}" if isinstance(content, SourceFile) else "what it should be"
        compared.explain(path, at, source, lambda: form.locate_beside(directory, name))


def _strays(directory: Path, expected: Collection[str]) -> Iterator[str]:
    """The topmost files and directories that are not on the way to an expected file, by path below the directory."""
    on_the_way = {str(parent) for path in expected for parent in PurePosixPath(path).parents}

    def below(place: Path) -> Iterator[str]:
        for path in sorted(place.iterdir()):
            name = path.relative_to(directory).as_posix()
            if name in on_the_way and path.is_dir():
                yield from below(path)
            elif name not in expected:
                yield name

    return below(directory)
