"""Rounds by the hour: `make soak ROUNDS=2000`, and `make soak ROUNDS=1 SEED=7` for one that found something."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.differential.rounds import FoundError, run_round


def attempt(seed: int) -> tuple[str, str]:
    """What a round did, as damage and outcome; or what it found, as text and `found`."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
    with tempfile.TemporaryDirectory() as room:
        try:
            record = run_round(seed, Path(room))
        except FoundError as error:
            return str(error), "found"
    return record.damage, record.outcome


def main() -> int:
    """Run the rounds; 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--seed", type=int, default=None, help="of the first round; the next has the next number")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    first = secrets.randbelow(10**9) if given.seed is None else given.seed
    say = sys.stdout.write
    say(f"{given.rounds} rounds, seeds from {first}\n")
    counts: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor(given.workers) as pool:
        seeds = range(first, first + given.rounds)
        for seed, (what, outcome) in zip(seeds, pool.map(attempt, seeds, chunksize=5), strict=True):
            if outcome == "found":
                say(f"\n{what}\nagain with: make soak ROUNDS=1 SEED={seed}\n\n")
            counts["" if outcome == "found" else what, outcome] += 1
            sys.stdout.flush()
    for (damage, outcome), count in sorted(counts.items()):
        say(f"{count:6}  {outcome:8} {damage}\n")
    return int(any(outcome == "found" for _, outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
