"""Programs of these tests, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def program(module: str, *arguments: object, directory: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run a module of this repository to its end, from a directory."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
