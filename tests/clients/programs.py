"""Programs of their own that tests start, with any packages in front of those that the tests have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(*arguments: str | Path, seconds: float, **environment: str) -> None:
    """Run Python with more of an environment; fail with everything that it printed unless it succeeds."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, **environment},
    )
    assert process.returncode == 0, f"{process.args} ended with status {process.returncode}:\n{process.stdout}"
