"""The files that the record of a result names, as they lie beside it.

Owns that none is looked for outside of the result, symbolic links followed, and the comparison of sizes. Reads no
content.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from distconv.errors import printable, raise_if, system_problem
from distconv.formats.provenance import PROVENANCE_NAME
from distconv.formats.records import Written


def check_inside(directory: Path, files: Mapping[str, Written]) -> None:
    """Raise `InputError` for every recorded file that a symbolic link takes out of the directory of the result."""
    home = os.path.realpath(directory)
    outside = [path for path in files if os.path.commonpath([home, os.path.realpath(directory / path)]) != home]
    raise_if(
        [
            f"{directory / PROVENANCE_NAME}: files: {printable(path)}: a symbolic link leads out of {directory}; "
            "put the file in its place"
            for path in outside
        ]
    )


def wrong_size(path: Path, size: int, recorded: Written) -> str | None:
    """The difference in words between the size of a file in bytes and the recorded one, `None` if equal."""
    if size == recorded.nbytes:
        return None
    return f"{path}: is {size:,} bytes long, its record says {recorded.nbytes:,}"


def wrong_sizes(directory: Path, files: Mapping[str, Written]) -> Iterator[str]:
    """The recorded files inside of a result that are missing or of another size, in words."""
    for name, recorded in files.items():
        path = directory / name
        try:
            wrong = wrong_size(path, path.stat().st_size, recorded)
        except OSError as error:
            wrong = system_problem(f"{path}: is in the record", error)
        if wrong is not None:
            yield wrong
