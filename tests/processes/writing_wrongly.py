"""`distconv`, except that rank 1 leaves one bit wrong in the first file that it writes."""

from __future__ import annotations

import os
import sys
from typing import Any

from distconv import writing
from distconv.cli.entry import main
from distconv.transfer.write import write_files


def written(*arguments: Any) -> dict[str, int]:
    sizes = write_files(*arguments)
    if os.environ["RANK"] == "1":
        path = arguments[2] / next(iter(sizes))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    return sizes


if __name__ == "__main__":
    writing.write_files = written
    sys.exit(main())
