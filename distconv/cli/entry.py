"""The entry of the program, which needs no package: a missing one is a sentence, wherever it is imported first.

Owns nothing but that; `main` is the program.
"""

from __future__ import annotations

import os

from distconv.errors import LauncherError, missing_package
from distconv.runtime.elastic import tell_agent
from distconv.runtime.interruption import end_undisturbed
from distconv.runtime.launch import launch


def main() -> int:
    """Run the command line; the exit status."""
    try:
        from distconv.cli.main import main as run  # noqa: PLC0415 - what it imports may be missing
    except ModuleNotFoundError as error:
        problem = missing_package(error)
        if problem is None:
            raise
        return _failed(f"distconv: {problem}")
    status = run()
    end_undisturbed()
    return status


def _failed(text: str) -> int:
    """Say on rank 0 why the program cannot begin; the exit status.

    Raises:
        SystemExit: this is rank 0; Python prints it.
    """
    try:
        is_first = launch(os.environ).rank == 0
    except LauncherError:
        is_first = True
    # Every process, since none waits for another: the agent may end rank 0 before that can say anything.
    tell_agent(text, os.environ)
    if is_first:
        raise SystemExit(text)
    return 1
