"""Jobs that are killed at random moments and started again until they end well: `kills.py --kills N [--seed N]`.

A round is a function of its seed, but for the moments, which depend on the speed of the machine. It draws a conversion,
a launcher, another one for the last start, whether a process or all of them are killed and by which signal, and the
moments, most of them while the job writes. Whatever is killed, the same command must end well when it is let, and the
result must be that of an undisturbed job, byte for byte, with nothing beside it; until then nothing but an older
result, or the new one, is seen.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

from tests.faults.conversions import CONVERSIONS, OTHER_PAIRS, Conversion, make_sources
from tests.faults.inject import Tree, tree
from tests.processes.jobs import Job, Outcome, mpirun, run, single, torchrun

LAUNCHERS: dict[str, Callable[..., list[str]]] = {
    "one process": single,
    "torchrun": partial(torchrun, 2),
    "mpirun": partial(mpirun, 2),
}
# Launchers take longer to start than jobs last.
_WEIGHTS = {"one process": 3, "torchrun": 1, "mpirun": 2}
# Words of a job that goes on with what is finished.
CONTINUED = "had been finished before"
# How often a job is killed in a round before it is let, at most.
_MOST_KILLS = 3
# So many of the kills come when there is something written, after up to so many seconds.
_WRITING, _WRITING_SECONDS = 0.8, 1.5
# Each of these calls takes so long, in seconds, so that a job writes for about that time.
_SLOW = {"slow": 0.004, "calls": "pwritev copy_file_range fsync rename mkdir unlink"}
_MADE = {name: each for name, each in {**CONVERSIONS, **OTHER_PAIRS}.items() if each.action == "convert"}


class FoundError(Exception):
    """What a round found: a result that is not right, or a job that does not end well although nothing disturbs it."""


@dataclass
class Record:
    """What happened in a round, in words, the number of kills that met a running job, and how it ended.

    `continued`: the job that was let went on with files that were finished.
    """

    story: list[str]
    kills: int = 0
    continued: bool = False

    def found(self, what: str, outcome: Outcome) -> FoundError:
        """The error of a round that found something."""
        return FoundError("\n".join([*self.story, what, outcome.out[-500:], outcome.err[-2000:]]))


class Killing:
    """The rounds, with what jobs start from, what each makes undisturbed, and how long each launcher takes."""

    def __init__(self, room: Path) -> None:
        """`room` holds what `make_sources` makes in `made`."""
        self._room, self._made = room, room / "made"
        self._after: dict[str, Tree] = {}
        self._seconds: dict[str, float] = {}

    def round(self, seed: int) -> Record:
        """Run a round.

        Raises:
            FoundError: something is wrong.
        """
        random = Random(seed)  # noqa: S311 - reproducible, and no secret
        name = random.choice(list(_MADE))
        launcher, last = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=2)
        record = Record([f"seed {seed}: {name}, {launcher}, in the end {last}"])
        home, conversion = self._room / f"round-{seed}", _MADE[name]
        target = home / "result"
        given, own = conversion.arguments(self._made, target), {str(rank): _SLOW for rank in range(2)}
        command = LAUNCHERS[launcher](*given, own=own)
        after = self._undisturbed(name, launcher, command, home, target)
        before = self._planted(home, target, conversion)
        for _ in range(random.randint(1, _MOST_KILLS)):
            outcome = self._killed(random, command, launcher, target, record)
            found = tree(target)
            if any(each not in (before.get(path), after.get(path)) for path, each in found.items()):
                raise record.found("what is there is neither of the older result nor of the new one", outcome)
            if found == after:
                break
        self._let(LAUNCHERS[last](*given), conversion, target, after, record)
        shutil.rmtree(home)
        return record

    def _undisturbed(self, name: str, launcher: str, command: list[str], home: Path, target: Path) -> Tree:
        """What the job makes; the first time it runs."""
        if name not in self._after or launcher not in self._seconds:
            self._planted(home, target, _MADE[name])
            outcome = run(command, self._room)
            if outcome.status:
                raise Record([name]).found("it fails undisturbed", outcome)
            found = tree(target)
            if self._after.setdefault(name, found) != found:
                raise Record([name]).found(f"{launcher} makes another result", outcome)
            self._seconds.setdefault(launcher, outcome.seconds)
        return self._after[name]

    def _planted(self, home: Path, target: Path, conversion: Conversion) -> Tree:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        conversion.plant(self._made, target)
        return tree(target)

    def _killed(self, random: Random, command: list[str], launcher: str, target: Path, record: Record) -> Outcome:
        """How a job ended of which a process, or all, got a signal at some moment."""
        number = random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        rank = None if launcher == "one process" else random.choice([None, 0, 1])
        late = random.random() < _WRITING
        seconds = random.uniform(0, _WRITING_SECONDS if late else self._seconds[launcher])
        left = _works(target)
        with Job(command, self._room) as job:
            while late and job.is_running() and _works(target) <= left:
                time.sleep(0.01)
            job.end_by(time.monotonic() + seconds)
            if job.is_running():
                with suppress(ProcessLookupError):
                    job.send_all(number) if rank is None else job.send(number, rank)
                    record.kills += 1
            outcome = job.end()
        when = f"{seconds:.2f} s after {'it began to write' if late else 'its start'}"
        what = "all" if rank is None else f"rank {rank}"
        record.story.append(f"{number.name} to {what} {when}: status {outcome.status}")
        if outcome.shows_its_inside and "Traceback" in outcome.err and number != signal.SIGKILL:
            raise record.found("not a sentence", outcome)
        return outcome

    def _let(self, command: list[str], conversion: Conversion, target: Path, after: Tree, record: Record) -> None:
        """Let the job end, unless it has: then it is refused, or made once more."""
        done = tree(target) == after
        outcome = run(command, self._room)
        refused = done and "overwrite=true" not in conversion.options
        record.story.append(f"let: status {outcome.status}")
        # Launchers have a status of their own for processes that fail.
        if bool(outcome.status) != refused or ("is already there" in outcome.err) != refused:
            raise record.found("it does not end well", outcome)
        if tree(target) != after:
            raise record.found("the result is another one", outcome)
        if left := _works(target):
            raise record.found(f"{left} is left", outcome)
        record.continued = CONTINUED in outcome.out


def _works(target: Path) -> set[Path]:
    """The directories of work of jobs with this target, whichever result it is."""
    return {*target.glob(".distconv-*"), *target.parent.glob(".distconv-*")}


def rounds(killing: Killing, seeds: Iterator[int], kills: int) -> Iterator[Record]:
    """Rounds with these seeds, until so many kills have met a job."""
    made = 0
    while made < kills:
        record = killing.round(next(seeds))
        made += record.kills
        yield record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next has the next number")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as room:
        (Path(room) / "made").mkdir()
        make_sources(Path(room) / "made")
        try:
            for record in rounds(Killing(Path(room)), count(given.seed), given.kills):
                counts.update(rounds=1, kills=record.kills, continued=record.continued)
                sys.stdout.write("; ".join(record.story) + "\n")
                sys.stdout.flush()
        except FoundError as error:
            sys.stdout.write(f"{error}\n")
            return 1
    sys.stdout.write(
        f"{counts['kills']} kills in {counts['rounds']} rounds, of which {counts['continued']} were continued in the "
        "end: every result as undisturbed\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
