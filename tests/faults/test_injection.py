"""Each call of the operating system that a job makes on its files may fail: then it is one sentence, and no harm.

What is true after each is in `inject.py`. Here a call of each kind fails in every conversion, in another one each time;
`make soak` lets every single one fail.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.calls import KINDS
from tests.faults.conversions import CONVERSIONS
from tests.faults.inject import tree
from tests.processes.jobs import mpirun, run, single, torchrun
from tests.processes.worlds import check_message

REPOSITORY = Path(__file__).parents[2]
# Kinds that the program has no use for. They are counted, so that one that it uses one day fails, too.
UNUSED = {
    "read", "pwrite", "posix_fallocate", "ftruncate", "truncate", "fdatasync", "replace", "link", "symlink", "utime",
    "sendfile",
}  # fmt: skip


def injected(room: Path, *arguments: object) -> dict:
    command = [sys.executable, "-m", "tests.faults.inject", str(room), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_call_of_each_kind_fails(name, room):
    found = injected(room, name, "--most", 1, "--round", list(CONVERSIONS).index(name))
    assert not found["wrong"], "\n\n".join(found["wrong"])
    # Some harm nobody.
    assert len(found["statuses"]) > 1
    assert sum(found["statuses"].values()) > 10
    assert not found["calls"].keys() & UNUSED


def test_jobs_make_calls_of_all_kinds(room):
    made = set()
    for name in ("ranks to ranks", "hf in place of another"):
        made |= injected(room, name, "--most", 0)["calls"].keys()
    assert made >= KINDS.keys() - UNUSED


@pytest.mark.parametrize(
    ("launcher", "rank", "kind", "number", "how"),
    [
        (torchrun, 1, "pwritev", 1, errno.ENOSPC),
        (torchrun, 0, "rename", 1, errno.EIO),
        (mpirun, 1, "preadv", 1, errno.ESTALE),
        # The first one is that of the directory of work, before anything is written.
        (mpirun, 0, "fsync of a directory", 3, errno.EIO),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_call_of_one_of_two_processes_fails(launcher, rank, kind, number, how, room, tmp_path):
    """All end, soon, and the one that failed is named."""
    conversion, target = CONVERSIONS["ranks in place of others"], tmp_path / "result"
    conversion.plant(room / "made", target)
    before = tree(target)
    options = [*conversion.arguments(room / "made", target), "layout.tp=2"]
    assert run(single(*options), REPOSITORY).status == 0
    after = tree(target)

    shutil.rmtree(target)
    conversion.plant(room / "made", target)
    where = str(room if kind == "preadv" else target)
    fault = json.dumps({"kind": kind, "number": number, "how": how, "rank": rank, "directory": where})
    command = ["tests.faults.injected" if word == "distconv" else word for word in launcher(2, fault, *options)]
    outcome = run(command, REPOSITORY)
    check_message(outcome, os.strerror(how), where)
    assert outcome.status == 1
    assert f"rank {rank} on " in outcome.err or kind == "rename"
    assert tree(target) == before
    assert run(single(*options), REPOSITORY).status == 0
    assert tree(target) == after
