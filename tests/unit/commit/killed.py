"""Jobs that are killed at each single step of a commit: `killed.py DIRECTORY HOW SCENARIO [twice]`.

A process of its own, because it forks, and because what it counts its steps by cannot be removed again. HOW says
whether names can be exchanged when the job commits and when the next one looks: `exchange`, `renames`, or `mixed`, at
first only. With `twice`, what puts things right is killed at each of its steps, too. Everything that must hold is
asserted; what it prints is a line of JSON: how many different states led back to the older result, and to the newer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distconv.commit import swap
from distconv.commit.journal import Finished, Journal
from distconv.commit.recovery import clean, leftovers
from distconv.commit.staging import Staging
from distconv.commit.target import Target
from distconv.errors import InputError
from distconv.formats.records import Written
from tests.unit.commit.targets import (
    FILE,
    JOB,
    OTHER_ITERATION,
    TRACKER,
    committed,
    plant,
    result,
    target,
    tree,
    written,
)

KILLED = 9
# A step that no job comes to.
LATER = 10**6
OLDER, NEWER = (
    {"hf/": "", **{f"hf/{name}": text for name, text in content.items()}}
    for content in ({"config.json": "{}", **result("old")}, result("new"))
)
# What is there before, the iteration, and what is there afterwards.
SCENARIOS: dict[str, tuple[dict[str, str], str | None, dict[str, str]]] = {
    "fresh": ({}, "release", committed("new")),
    "beside training": (OTHER_ITERATION, "release", {**OTHER_ITERATION, **committed("new")}),
    "again": (committed("old"), "release", committed("new")),
    "again beside training": (
        {**OTHER_ITERATION, **committed("old"), TRACKER: "10"},
        "release",
        {**OTHER_ITERATION, **committed("new")},
    ),
    "a directory itself": (OLDER, None, NEWER),
    "a new directory itself": ({}, None, NEWER),
    "an empty directory": ({"hf/": ""}, None, NEWER),
}


class Steps:
    """Does something before the step of a number: a system call that the program makes, or the end of one."""

    def __init__(self) -> None:
        self.number = 0
        self._last: int | None = None
        self._then: Callable[[], object] = lambda: None
        sys.addaudithook(self._heard)
        self._surround(os, "fsync")
        self._surround(swap, "exchange")

    def counted(self, last: int, then: Callable[[], object]) -> None:
        self.number, self._last, self._then = 0, last, then

    def uncounted(self) -> None:
        self._last = None

    def _step(self) -> None:
        if self._last is None:
            return
        self.number += 1
        if self.number == self._last:
            self._last = None
            self._then()

    def _heard(self, event: str, _: tuple[Any, ...]) -> None:
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.listdir", "os.scandir"}:
            self._step()

    def _surround(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def surrounded(*arguments: Any) -> Any:
            self._step()
            value = real(*arguments)
            self._step()
            return value

        setattr(module, name, surrounded)


def main() -> None:
    directory, how, scenario, *twice = Path(sys.argv[1]), *sys.argv[2:]
    before, iteration, after = SCENARIOS[scenario]
    steps = Steps()
    exchange = swap.exchange
    if how == "renames":
        swap.exchange = lambda *_: False
    counts = {"older": 0, "newer": 0}
    seen_newer = False
    state: dict[str, str] = {}
    for number in range(1, LATER):
        home = directory / str(number)
        home.mkdir()
        plant(home, before)
        there = target(home if iteration is not None else home / "hf", iteration)
        if not in_child(lambda: commit(there, steps, number)):  # noqa: B023 - it is called at once
            assert tree(home) == after
            break
        if state_of(home) == state:
            # This step only looked.
            shutil.rmtree(home)
            continue
        state = state_of(home)
        check_between(home, before, after, how)
        if how == "mixed":
            swap.exchange = lambda *_: False
        newer = check_restart(there, home, before, after, steps, twice=bool(twice))
        swap.exchange = exchange if how != "renames" else swap.exchange
        assert newer or not seen_newer, f"step {number} lost the result that step {number - 1} had committed"
        seen_newer = newer
        counts["newer" if newer else "older"] += 1
        shutil.rmtree(home)
    print(json.dumps(counts))  # noqa: T201 - for the test that started this


def state_of(home: Path) -> dict[str, str]:
    """What is there, but for what differs from job to job: its name, and what it says of inodes and processes."""
    return {
        re.sub("-[0-9a-f]{8}", "", name): text if text in ("old", "new") else str(bool(text))
        for name, text in tree(home).items()
    }


def in_child(job: Callable[[], object]) -> bool:
    """Do something in a process of its own; whether that was killed. It must not fail in any other way."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException:  # noqa: BLE001 - the copy of this process must not go on
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, KILLED), f"the job ended with {status}"
    return status == KILLED


def commit(there: Target, steps: Steps, number: int) -> None:
    """A job that is killed before a step of its commit, or of what it does until it ends."""
    with Staging(there) as staging:
        staging.claim(JOB, overwrite=True)
        files = written(staging)
        Journal(staging.path.parent, 0, durable=True).add({FILE: Finished(written=Written(3, None), durable=True)})
        steps.counted(number, lambda: os._exit(KILLED))
        staging.commit(files, durable=True)
    steps.uncounted()


def check_between(home: Path, before: dict[str, str], after: dict[str, str], how: str) -> None:
    """Before anything looks after it: nothing is lost, and if names are exchanged, there is always a result."""
    texts = {path.read_text() for path in home.rglob("file.pt")}
    visible = tree(home, hidden=False)
    assert "new" in texts, "the new result is lost"
    assert visible == after or "old" in texts or "old" not in before.values(), "the old result is lost"
    if how == "exchange" and "old" in before.values():
        assert any(name.endswith("file.pt") for name in visible), "there was a moment without a result"


def check_restart(
    there: Target, home: Path, before: dict[str, str], after: dict[str, str], steps: Steps, *, twice: bool
) -> bool:
    """What the next start makes of it, whichever that is, and if it is killed, too; whether it is the new result."""
    outcomes = []
    # Of a commit that has not begun, or is over, there is nothing to put right.
    first = 1 if twice and any(home.rglob("commit.json")) else LATER
    for restart in (next_job, replacing_job, clean_up):
        for number in range(first, LATER + 1):
            copy = home.parent / f"{home.name}-{restart.__name__}-{number}"
            move_results(home, copy)
            again = Target(directory=copy / there.directory.relative_to(home), iteration=there.iteration)

            def killed(number: int = number, again: Target = again, restart: Callable[..., object] = restart) -> None:
                steps.counted(number, lambda: os._exit(KILLED))
                restart(again)
                steps.uncounted()

            done = not in_child(killed)
            if not done:
                restart(again)
            clean(again.directory)
            found = tree(copy)
            assert found in (before, after), f"{restart.__name__}, killed at {number}: {found}"
            assert leftovers(again.directory) == []
            outcomes.append(found == after)
            shutil.rmtree(copy)
            if done:
                break
    assert len(set(outcomes)) == 1, f"it is not the same whoever looks: {outcomes}"
    return outcomes[0]


def move_results(home: Path, copy: Path) -> None:
    """A copy of a directory, as far as the program can tell: a journal knows inodes, so it is told the new ones."""
    inodes = {path.lstat().st_ino: path.relative_to(home) for path in walk(home)}
    shutil.copytree(home, copy, symlinks=True)
    for journal in copy.rglob("commit.json"):
        content = json.loads(journal.read_text())
        for key in ("new", "replaced"):
            if content[key] in inodes:
                content[key] = (copy / inodes[content[key]]).lstat().st_ino
        journal.write_text(json.dumps(content))


def walk(home: Path) -> Iterator[Path]:
    return (path for path in home.rglob("*") if path.is_dir())


def next_job(there: Target) -> None:
    """One that is refused, after it has put right what it found, or has nothing to say against what is there."""
    try:
        with Staging(there) as staging:
            staging.claim(JOB, overwrite=False)
    except InputError as error:
        assert "is already there" in str(error), error  # noqa: PT017 - this is no test


def replacing_job(there: Target) -> None:
    """One that may replace what is there, and takes nothing for finished that is not its own."""
    with Staging(there) as staging:
        staging.claim(JOB, overwrite=True)
        assert not staging.finished or (staging.path / FILE).read_text() == "new"


def clean_up(there: Target) -> None:
    clean(there.directory)


if __name__ == "__main__":
    main()
