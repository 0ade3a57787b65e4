"""Runs the tests of every mutation on a copy of the tree that has it: `python -m tests.mutations.run [WORD ...]`.

With words, only mutations whose file or text has one of them. The status is 1 if a mutation survives, or if its text is
no longer in its file. The tree itself is never changed.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutations.catalogue import ROOT, Mutation, mutations

_COPIED = (
    "distconv",
    "conf",
    "tests",
    "launch",
    "pyproject.toml",
    "Makefile",
    *(path.name for path in ROOT.glob("*.md")),
)
# A mutation that makes a test wait for ever has been noticed.
_SECONDS = 600
# What pytest ends with: all passed; a test failed; a module could not be imported.
_PASSED, _NOTICED = 0, (1, 2)


def main() -> int:
    """Run the mutations; the exit status."""
    parser = argparse.ArgumentParser(description="Find mutations of the code that no test notices.")
    parser.add_argument("words", nargs="*", help="run only mutations whose file or text has one of these words")
    parser.add_argument("--workers", type=int, default=2, help="mutations that are tried at a time")
    given = parser.parse_args()
    chosen = [each for each in mutations() if not given.words or any(word in str(each) for word in given.words)]
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(given.workers):
            copies.put(_copied(Path(place, str(number))))
        first = copies.get()
        if failed := _status(first, sorted({test for each in chosen for test in each.tests})):
            print(f"the tests fail without any mutation (status {failed})")
            return 1
        copies.put(first)
        with ThreadPoolExecutor(given.workers) as pool:
            outcomes = list(pool.map(lambda each: _tried(each, copies), chosen))
    return _reported(chosen, outcomes)


def _copied(place: Path) -> Path:
    place.mkdir()
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    return place


def _tried(mutation: Mutation, copies: queue.SimpleQueue[Path]) -> str:
    """What became of a mutation: `caught`, `survived`, or why it could not be tried."""
    copy = copies.get()
    path = copy / mutation.file
    original = path.read_text()
    try:
        path.write_text(mutation.applied(original))
        status = _status(copy, mutation.tests)
        outcome = "survived" if status == _PASSED else "caught" if status in _NOTICED else f"pytest ended with {status}"
    except ValueError as error:
        outcome = str(error)
    finally:
        path.write_text(original)
        copies.put(copy)
    print(f"{outcome:8}  {mutation}", flush=True)
    return outcome


def _status(copy: Path, tests: Iterable[str]) -> int:
    """The exit status of pytest on these tests of a copy; 1 if it takes too long."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # Compiled code is found by the time and size of its source, which a mutation may share with the original.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1
    if done.returncode not in (_PASSED, *_NOTICED):
        print(done.stdout[-2000:], done.stderr[-2000:])
    return done.returncode


def _reported(chosen: Sequence[Mutation], outcomes: Sequence[str]) -> int:
    left = [(each, outcome) for each, outcome in zip(chosen, outcomes, strict=True) if outcome != "caught"]
    caught = len(chosen) - len(left)
    print(f"\n{caught} of {len(chosen)} mutations caught ({caught / max(len(chosen), 1):.0%})")
    for mutation, outcome in left:
        print(f"{outcome}: {mutation}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
