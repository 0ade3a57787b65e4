"""Faults by the hour: `make faults KILLS=300 INPUTS=10000`. What is sampled by `make test`, all of it.

Every reader is fuzzed, every call of every job fails once, kinds of calls are refused, and jobs are killed. A line for
each; what was found comes first, with how to see it again.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.faults.conversions import CONVERSIONS, make_sources
from tests.faults.fuzz.targets import TARGETS
from tests.faults.programs import program


def fuzzed(name: str, inputs: int, seed: int) -> tuple[bool, str]:
    """Whether a reader held, and what became of it; an input that it did not bear stays in the working directory."""
    done = program("tests.faults.fuzz", name, "--inputs", inputs, "--seed", seed, directory=Path.cwd())
    covered = re.findall(r"DONE\s+cov: (\d+)", done.stderr)
    if done.returncode or not covered:
        return False, f"fuzzing {name}, seed {seed}\n{done.stderr[-3000:]}"
    return True, f"{name}: {inputs} inputs read or refused, {covered[0]} edges of the code covered"


def injected(name: str, room: Path, *options: str) -> tuple[bool, str]:
    """Whether a job bore every fault, and how its runs ended."""
    done = program("tests.faults.inject", room, name, *options)
    if done.returncode:
        return False, f"{name}: {done.stderr[-3000:]}"
    found = json.loads(done.stdout)
    if found["wrong"]:
        return False, "\n\n".join(found["wrong"])
    ended = ", ".join(f"{count} with status {status}" for status, count in sorted(found["statuses"].items()))
    what = "kinds of calls refused" if options else "single calls failing"
    return True, f"{name}: {sum(found['statuses'].values())} runs with {what}: {ended}"


def killed(kills: int, seed: int) -> tuple[bool, str]:
    """Whether jobs bore being killed."""
    done = program("tests.faults.kills", "--kills", kills, "--seed", seed)
    return not done.returncode, done.stdout.splitlines()[-1] if not done.returncode else f"{done.stdout}{done.stderr}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    seed = secrets.randbelow(10**6)
    failed = False
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(given.workers) as pool:
        room = Path(directory)
        (room / "made").mkdir()
        make_sources(room / "made")
        tasks: list[Callable[[], tuple[bool, str]]] = [partial(killed, given.kills, seed)]
        tasks += [partial(fuzzed, name, given.inputs, seed + 1) for name in TARGETS]
        tasks += [partial(injected, name, room, "--refused") for name in CONVERSIONS]
        tasks += [partial(injected, name, room) for name in CONVERSIONS]
        for held, words in pool.map(lambda task: task(), tasks):
            failed |= not held
            sys.stdout.write(f"{words}\n" if held else f"\n{words}\n\n")
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
