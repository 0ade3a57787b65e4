"""Faults in every call that a conversion makes: `inject.py DIRECTORY CONVERSION [--most N] [--round N] [--refused]`.

A process of its own, which imports the program once and forks for each run, since the calls that it replaces are never
put back. First the conversion runs undisturbed and its calls are counted; then once for each call, which fails. What
must be true then is `wrong`'s. Or all calls of a kind are refused, as by file systems that do not have it. Prints a
line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from distconv.cli.main import main
from distconv.transfer import lower
from tests.faults.calls import DISPENSABLE, KINDS, REFUSED, SHORT, Calls, Fault
from tests.faults.conversions import CONVERSIONS, Conversion

# A run that lasts longer hangs.
SECONDS = 60
_HIDDEN = ".distconv"
# It names a file, by a path that is longer than that of the root directory.
_SENTENCE = re.compile(r"^distconv: .*/\w", re.MULTILINE)

Tree = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: status, output, the calls it made by kind, and how many of them were made to fail."""

    status: int
    out: str
    err: str
    calls: dict[str, int]
    failed: int


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What came of the runs of a conversion: calls by kind, runs by exit status, and what was wrong."""

    calls: dict[str, int]
    statuses: dict[str, int]
    wrong: list[str]


class Bench:
    """A conversion, what it starts from, what it makes undisturbed, and a place for each run."""

    def __init__(self, directory: Path, conversion: Conversion) -> None:
        """`directory` holds what `make_sources` makes in `made`."""
        self._directory, self._conversion = directory, conversion
        self._made, self._home = directory / "made", directory / f"home-{os.getpid()}"
        self._target = self._home / ("result" if conversion.older else "new/result")
        self._log = directory / f"log-{os.getpid()}"
        self.before, self._sources = self._planted(), tree(self._made)
        self.calls = self._checked_run().calls
        self.after = tree(self._target)

    def wrong(self, fault: Fault) -> tuple[int, str | None]:
        """The status of a run with a fault, and what is wrong with it: with its words, its result, or the next run."""
        self._planted()
        ended = self._run(fault)
        return ended.status, self._problem(ended)

    def _problem(self, ended: Ended) -> str | None:
        found, words = tree(self._target), f"status {ended.status}\n{ended.out[-300:]}\n{ended.err[-2500:]}"
        if not ended.failed:
            return f"no call was made to fail: {words}"
        if ended.status not in (0, 1, 2) or "Traceback" in ended.err or "unexpected" in ended.err:
            return f"not a sentence: {words}"
        if ended.status and not _SENTENCE.search(ended.err):
            return f"it does not say where: {words}"
        if found not in (self.before, self.after) or (found != self.after and not ended.status):
            return f"the target is {_difference(self.after, found)}: {words}"
        if ended.status == 2 and found != self.before:
            return f"the target is not as it was, in spite of status 2: {words}"
        if ended.status == 1 and found == self.after != self.before and "is in place and complete" not in ended.err:
            return f"it does not say that the result is complete: {words}"
        if tree(self._made) != self._sources:
            return f"the sources have changed: {words}"
        return self._problem_of_next(words) if ended.status and found == self.before else None

    def _problem_of_next(self, words: str) -> str | None:
        again = self._run(None)
        if again.status or tree(self._target) != self.after:
            left = _difference(self.after, tree(self._target))
            return f"the next run ends with {again.status}, and the target {left}: {again.err[-500:]}\nafter {words}"
        return None

    def _planted(self) -> Tree:
        shutil.rmtree(self._home, ignore_errors=True)
        self._home.mkdir()
        self._conversion.plant(self._made, self._target)
        return tree(self._target)

    def _checked_run(self) -> Ended:
        ended = self._run(None)
        assert ended.status == 0, ended.err
        return ended

    def _run(self, fault: Fault | None) -> Ended:
        """Run the command line in a process of its own."""
        arguments = self._conversion.arguments(self._made, self._target)
        out, err, told = (self._log.with_suffix(f".{each}") for each in ("out", "err", "told"))
        told.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            try:
                for number, path in ((1, out), (2, err)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
                signal.alarm(SECONDS)
                counted(arguments, str(self._directory), fault, told)
            finally:
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = json.loads(told.read_text()) if told.exists() else {"calls": {}, "failed": 1}
        return Ended(status=status, out=out.read_text(), err=err.read_text(), **said)


def counted(arguments: list[str], directory: str, fault: Fault | None, told: Path) -> None:
    """Run the command line in this process, which ends here; `told` gets what calls it made."""
    # Not below the directory: who starts where nothing can be looked at is told so.
    os.chdir("/")
    sys.argv = ["distconv", *arguments]
    # The small model has no longer ones, and copies between files are calls, too.
    lower.MIN_RUN_BYTES = 256
    told_to = os.open(told, os.O_WRONLY | os.O_CREAT, 0o600)
    calls, write = Calls(directory, fault), os.write
    calls.replace()
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    write(told_to, json.dumps({"calls": calls.counts, "failed": calls.failed}).encode())
    os._exit(status)


def warm_up() -> None:
    """Have imported, before anything is forked, what a command line needs."""
    sys.argv = ["distconv", "action=models"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main() == 0


def tree(directory: Path) -> Tree:
    """What users see in a directory: each path with its permissions, and the hash of what is in a file."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if not name.startswith(_HIDDEN):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[name] = f"{path.stat().st_mode:o} {content}"
    return found


def _difference(expected: Tree, found: Tree) -> str:
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"neither as it was nor done: {', '.join(names[:5])}" if names else "done"


def faults(calls: dict[str, int], most: int | None, turn: int) -> Iterator[Fault]:
    """A fault for each call, or for so many of each kind, evenly; `turn` chooses which, and how each fails."""
    for kind in KINDS:
        count = calls.get(kind, 0)
        chosen = count if most is None else min(most, count)
        for at in range(chosen):
            number = at * count // chosen + turn % max(count // chosen, 1) + 1
            yield Fault(kind=kind, number=number, how=KINDS[kind][(at + turn) % len(KINDS[kind])])


def refusals(calls: dict[str, int]) -> Iterator[Fault]:
    """All calls of a kind fail, in each way in which file systems refuse it that do not have it."""
    for kind, numbers in REFUSED.items():
        yield from (Fault(kind=kind, number=None, how=number) for number in numbers if calls.get(kind))


def findings(bench: Bench, name: str, tried: Iterable[Fault]) -> Findings:
    """What comes of faults in a conversion."""
    statuses: Counter[str] = Counter()
    wrong = []
    for fault in tried:
        status, problem = bench.wrong(fault)
        could_go_on = fault.how == SHORT or (fault.number is None and fault.kind in DISPENSABLE)
        if problem is None and status and could_go_on:
            problem = f"the job ends with {status}, and could do without"
        statuses[str(status)] += 1
        if problem is not None:
            wrong.append(f"{name}, {fault} of {bench.calls[fault.kind]}: {problem}")
    return Findings(calls=bench.calls, statuses=dict(statuses), wrong=wrong)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("conversion", choices=CONVERSIONS)
    parser.add_argument("--most", type=int, help="of each kind; all calls are tried without")
    parser.add_argument("--round", type=int, default=0, help="which of the calls, and how they fail")
    parser.add_argument("--refused", action="store_true", help="all calls of a kind at once")
    given = parser.parse_args()
    warm_up()
    bench = Bench(given.directory, CONVERSIONS[given.conversion])
    tried = refusals(bench.calls) if given.refused else faults(bench.calls, given.most, given.round)
    sys.stdout.write(json.dumps(asdict(findings(bench, given.conversion, tried))) + "\n")


if __name__ == "__main__":
    run()
