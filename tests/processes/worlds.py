"""Checkpoints in which a rank sees its own version of a shard, and what every failure must look like.

Such a shard is a link to `/proc/self/cwd/shard`, so each rank sees the one in its own working directory: a good one,
none, a shorter one, or a pipe that nobody writes to, on which the rank waits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.checkpoints import write_source
from tests.processes.jobs import Outcome

# Seconds in which the others must follow the one that failed, and the whole job must be over.
SOON, OVER = 20, 60
# Seconds after which a process that nothing holds has done its share, and waits for the other.
SHARE = 3


class World:
    """A checkpoint `hf` with a shard that each of two ranks sees in its own way, and a target `mm`."""

    def __init__(self, directory: Path, case: Mapping[str, Any], shard: str, *options: str) -> None:
        self.directory = directory
        self.target = directory / "mm"
        self.options = options
        self.views = [directory / str(rank) / "shard" for rank in range(2)]
        self.own = {str(rank): {"directory": str(view.parent)} for rank, view in enumerate(self.views)}
        path = write_source(directory / "hf", case) / shard
        for view in self.views:
            view.parent.mkdir()
            shutil.copy(path, view)
        path.unlink()
        path.symlink_to("/proc/self/cwd/shard")

    def arguments(self, *options: str, source: str = "hf") -> list[str]:
        paths = [f"source={self.directory / source}", f"target={self.target}"]
        return ["+model=qwen2vl", *paths, *self.options, *options]

    def hold(self, rank: int) -> None:
        """Let a rank wait when it reads the shard."""
        self.views[rank].unlink()
        os.mkfifo(self.views[rank])

    def release(self) -> None:
        """Let ranks that wait go on: what they wanted to read is empty."""
        for view in self.views:
            # Nobody may be waiting.
            with contextlib.suppress(OSError):
                if view.is_fifo():
                    os.close(os.open(view, os.O_WRONLY | os.O_NONBLOCK))

    def staging(self) -> list[Path]:
        return list(self.target.glob(".distconv-*"))

    def results(self) -> list[Path]:
        """All that looks like a result, or a part of one."""
        return [path for path in self.target.glob("*") if not path.name.startswith(".")]


def check_message(outcome: Outcome, *fragments: str) -> None:
    """The program spoke once, said this, and showed nothing of its inside; launchers may add words of their own."""
    assert outcome.err.count("distconv: ") == 1, outcome.err
    assert [fragment for fragment in fragments if fragment not in outcome.err] == [], outcome.err
    assert not outcome.shows_its_inside
    assert "wrote " not in outcome.out
