"""Fuzzing of one reader, guided by coverage: `python -m tests.faults.fuzz TARGET [--inputs N] [--only FILE]`.

A process of its own: libFuzzer takes it over, and ends it. The first finding is an input that is kept in the working
directory as `crash-…`, `timeout-…` or `oom-…`, and an exit status that is not 0. `--only` reads one such file again.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["distconv"]):
    from distconv.errors import DistconvError
    from tests.faults.fuzz.targets import TARGETS, Target
    from tests.faults.fuzz.trees import changed

# Limits of one input, however it is damaged; and the largest one, in bytes.
SECONDS, MIB, LONGEST = 2, 1024, 1 << 15
# The part of the inputs in which a value is changed rather than bytes, where that can be.
TREES = 0.6


class SlowError(Exception):
    """An input that took too long."""


class _Reading:
    """The reading of inputs with one target, in a directory."""

    def __init__(self, target: Target, directory: Path) -> None:
        self._target, self._directory = target, directory
        target.prepare(directory)

    def __call__(self, data: bytes) -> None:
        (self._directory / self._target.name).write_bytes(self._target.content(data))
        start = time.monotonic()
        try:
            self._target.read(self._directory)
        except DistconvError as error:
            # What is said of it must be fit to be said.
            str(error).encode()
        if time.monotonic() - start > SECONDS:
            raise SlowError(f"{time.monotonic() - start:.1f} s")


def mutated(target: Target, data: bytes, most: int, seed: int) -> bytes:
    """A changed input: as libFuzzer changes bytes, or, of a text with structure, another value in it."""
    random = Random(seed)  # noqa: S311 - reproducible, and no secret
    mark, text = data[:1], data[1:]
    if target.text is not None and (mark != b"\0" or target.frame is bytes) and random.random() < TREES:
        with contextlib.suppress(Exception):
            tree = target.text.read(text)
            for _ in range(random.choice((1, 1, 2, 5))):
                tree = changed(tree, random)
            return (mark + target.text.write(tree))[:most]
    return bytes(atheris.Mutate(data, most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=Path)
    given = parser.parse_args()
    target = TARGETS[given.target]
    with tempfile.TemporaryDirectory() as room:
        corpus, directory = Path(room, "corpus"), Path(room, "read")
        corpus.mkdir()
        directory.mkdir()
        for number, each in enumerate(target.corpus()):
            (corpus / str(number)).write_bytes(each)
        limits = [
            f"-timeout={5 * SECONDS}",
            f"-rss_limit_mb={MIB}",
            f"-max_len={LONGEST}",
            "-print_final_stats=1",
            "-len_control=0",
        ]
        words = [str(given.only)] if given.only else [f"-runs={given.inputs}", f"-seed={given.seed}", str(corpus)]
        changing = partial(mutated, target)
        atheris.Setup([sys.argv[0], *limits, *words], _Reading(target, directory), custom_mutator=changing)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
