"""`distconv`, except that rank 1 leaves one bit wrong in the first file, or the first part of one, that it writes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from distconv import writing
from distconv.cli.entry import main
from distconv.formats.records import Written
from distconv.transfer.parts import WrittenPart, write_parts
from distconv.transfer.write import write_files


def written(*arguments: Any) -> dict[str, Written]:
    done = write_files(*arguments)
    for path in list(done)[:1]:
        spoil(arguments[2] / path, done[path].nbytes // 2)
    return done


def written_parts(*arguments: Any) -> dict[str, WrittenPart]:
    told = write_parts(*arguments)
    for path in list(told)[:1]:
        ((offset, nbytes, _),) = told[path].pieces or ()
        spoil(arguments[2] / path, offset + nbytes // 2)
    return told


def spoil(path: Path, offset: int) -> None:
    """Change a bit where nobody else writes."""
    if os.environ["RANK"] == "1":
        descriptor = os.open(path, os.O_RDWR)
        (byte,) = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte ^ 1]), offset)
        os.close(descriptor)


if __name__ == "__main__":
    writing.write_files, writing.write_parts = written, written_parts
    sys.exit(main())
