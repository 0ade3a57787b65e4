"""Checkpoints in which a rank sees its own version of a file, and what every failure must look like.

Such a file is a link to `/proc/self/cwd/shard`, so each rank sees the one in its own working directory: a good one,
none, a shorter one, or one whose opening waits for a pipe beside it that nobody writes to (`held/sitecustomize.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from distconv.commit.journal import finished_in
from tests.processes.jobs import Job, Outcome

# Seconds in which the others must follow the one that failed, and the whole job must be over.
SOON, OVER = 20, 60
# Seconds after which a process that nothing holds has done its share, and waits for the other.
SHARE = 3


class World:
    """A checkpoint with a file that each of two ranks sees in its own way, and a target beside it.

    `file` is its path below the directory; the first part of it is the source.
    """

    def __init__(self, directory: Path, file: str, target: str, *options: str) -> None:
        self.directory = directory
        self.source = file.partition("/")[0]
        self.target = directory / target
        self.options = options
        self.views = [directory / str(rank) / "shard" for rank in range(2)]
        self.own = {str(rank): {"directory": str(view.parent)} for rank, view in enumerate(self.views)}
        path = directory / file
        for view in self.views:
            view.parent.mkdir()
            # With its time: they are one file on a file system that both see.
            shutil.copy2(path, view)
        path.unlink()
        path.symlink_to("/proc/self/cwd/shard")

    def arguments(self, *options: str, source: str | None = None) -> list[str]:
        paths = [f"source={self.directory / (source or self.source)}", f"target={self.target}"]
        return [*paths, *self.options, *options]

    def hold(self, rank: int) -> None:
        """Let a rank wait when it opens the shard, which is empty."""
        self.views[rank].write_bytes(b"")
        self.hold_intact(rank)

    def hold_intact(self, rank: int) -> None:
        """Let a rank wait when it opens the shard, which is as it was."""
        os.mkfifo(self.views[rank].with_name("held"))

    def release(self) -> None:
        """Let ranks that wait go on: what they wanted to read is empty."""
        for view in self.views:
            # There may be no pipe, and nobody waiting.
            with contextlib.suppress(OSError):
                os.close(os.open(view.with_name("held"), os.O_WRONLY | os.O_NONBLOCK))

    def staging(self) -> list[Path]:
        """In the target, or beside one that is the result itself."""
        return [*self.target.glob(".distconv-*"), *self.directory.glob(".distconv-*")]

    def check_unfinished(self, outcome: Outcome) -> None:
        """Nothing is in place; a directory of work is left only with finished files, and its user is told."""
        assert self.results() == []
        assert self.staging() or not self.target.exists()
        for work in self.staging():
            assert finished_in(work)
            assert f"{work} is left of a job that did not end" in outcome.out + outcome.err

    def results(self) -> list[Path]:
        """All that looks like a result, or a part of one."""
        return [path for path in self.target.glob("*") if not path.name.startswith(".")]


def killed_while_the_other_waits(launcher: Callable[..., list[str]], victim: int, world: World) -> Outcome:
    """How a job on two processes ends, soon, when the first waits for the second, and one of them is killed."""
    world.hold(1)
    with Job(launcher(2, *world.arguments(), own=world.own), world.directory) as job:
        job.until(world.staging, "a staging directory")
        time.sleep(SHARE)
        job.send(signal.SIGKILL, victim)
        killed = time.monotonic()
        outcome = job.end(world.release)
    assert time.monotonic() - killed < SOON, outcome.err
    return outcome


def check_message(outcome: Outcome, *fragments: str) -> None:
    """The program spoke once, said this, and showed nothing of its inside; launchers may add words of their own."""
    assert outcome.told.count("distconv: ") == 1, outcome.err
    assert [fragment for fragment in fragments if fragment not in outcome.err] == [], outcome.err
    assert not outcome.shows_its_inside
    assert "wrote " not in outcome.out
