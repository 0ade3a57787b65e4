"""`python -m distconv` that notes what is imported when its first byte is to move: `at_first_byte.py DIRECTORY …`.

Every process writes the names of its modules into a file of DIRECTORY, a line each, named after its process id.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distconv.cli.entry import main
from distconv.transfer.crew import Crew


def noting(call: Callable[..., Any], directory: Path) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        path = directory / str(os.getpid())
        if not path.exists():
            path.write_text("\n".join(sorted(sys.modules)))
        return call(*arguments, **options)

    return noted


if __name__ == "__main__":
    Crew.begin = noting(Crew.begin, Path(sys.argv.pop(1)))  # type: ignore[method-assign]
    sys.exit(main())
