"""Real jobs for tests: started as users start them, watched while they run, never outliving the test.

Knows the launchers and how to find the processes of a job; knows nothing of checkpoints. Every process of a job carries
a mark in its environment, by which it is found in `/proc` however its launcher groups and detaches it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest

import distconv
from tests.processes import plain_launcher, surroundings

MARK = "DISTCONV_TEST_JOB"
# How names begin that launchers set: a job of a test must not take itself for a part of the one that runs the tests.
LAUNCHER_NAMES = ("PMI", "OMPI_", "MPI", "HYDRA_", "SLURM_", "TORCHELASTIC_", "MASTER_", "RANK", "LOCAL_", "WORLD_")
JOB_SECONDS = 120
REPORT = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"
PACKAGE = str(Path(distconv.__file__).parent)
PYTHON = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
MPIRUN = (str(Path(sys.executable).parent / "mpirun"), "-n")
# Beside the MPICH of the environment, which has the same names: `make setup` lays it there.
OPEN_MPI = Path(sys.prefix) / "side" / "open-mpi"
OPEN_MPI_NAMES = {
    "MPI4PY_LIBMPI": str(OPEN_MPI / "lib" / "libmpi.so.40"),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def single(*arguments: object, own: Mapping[str, Any] | None = None) -> list[str]:
    """`python -m distconv`, in the surroundings of rank 0."""
    return [*_python(own), "-m", "distconv", *map(str, arguments)]


def torchrun(count: int, *arguments: object, own: Mapping[str, Any] | None = None) -> list[str]:
    """`torchrun --nproc-per-node COUNT -m distconv`; `own` gives the surroundings of ranks that have their own."""
    program = [] if own is None else ["--no-python", *_python(own)]
    return [*TORCHRUN, str(count), *program, "-m", "distconv", *map(str, arguments)]


def mpirun(count: int, *arguments: object, own: Mapping[str, Any] | None = None) -> list[str]:
    """`mpirun -n COUNT python -m mpi4py -m distconv`."""
    return [*MPIRUN, str(count), *_python(own), "-m", "mpi4py", "-m", "distconv", *map(str, arguments)]


def open_mpirun(count: int, *arguments: object, own: Mapping[str, Any] | None = None) -> list[str]:
    """`mpirun -n COUNT python -m mpi4py -m distconv` of Open MPI, also where it would refuse root or many processes."""
    need_open_mpi()
    names = [f"{name}={value}" for name, value in OPEN_MPI_NAMES.items()]
    options = ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-n", str(count)]
    program = [*_python(own), "-m", "mpi4py", "-m", "distconv", *map(str, arguments)]
    return ["/usr/bin/env", *names, str(OPEN_MPI / "bin" / "mpirun"), *options, *program]


def need_open_mpi() -> None:
    """Skip the test where Open MPI is not."""
    if not OPEN_MPI.is_dir():
        pytest.skip(f"Open MPI is not in {OPEN_MPI}: make setup lays it there, where it has a wheel")


def plain_mpirun(count: int, *arguments: object, own: Mapping[str, Any] | None = None) -> list[str]:
    """`mpirun -n COUNT python -m distconv`, as somebody starts it who does not know of `-m mpi4py`."""
    return [*MPIRUN, str(count), *_python(own), "-m", "distconv", *map(str, arguments)]


def srun(count: int, *arguments: object, own: Mapping[str, Any] | None = None) -> list[str]:
    """`srun --ntasks COUNT python -m distconv` with an address: rank 0 hosts the store."""
    return tasks_of_srun(count, "-m", "distconv", *map(str, arguments), own=own)


def tasks_of_srun(count: int, *program: str, own: Mapping[str, Any] | None = None) -> list[str]:
    """A program of Python on processes that know an address, and that nobody ends when one of them is killed."""
    return [*PYTHON, plain_launcher.__file__, str(count), *_python(own), *program]


def _python(own: Mapping[str, Any] | None) -> Sequence[str]:
    return PYTHON if own is None else (*PYTHON, surroundings.__file__, json.dumps(own), *PYTHON)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def told(self) -> str:
        """What the processes said on standard error, without the report of torchrun's agent, which repeats it."""
        return self.err.partition(REPORT)[0]

    @property
    def shows_its_inside(self) -> bool:
        """Whether a traceback of the program, not just of its launcher, is in what it said."""
        return PACKAGE in self.err


class Job:
    """A running job. As a context manager it ends every process that is still there at the end."""

    def __init__(self, command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_NAMES)}
        self._mark = secrets.token_hex(8)
        # Read with pread: the position in them is the processes' own.
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._start = time.monotonic()
        self._launcher = subprocess.Popen(
            command,
            cwd=directory,
            env={**inherited, "OMP_NUM_THREADS": "1", **(environment or {}), MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._launcher.kill()
        for pid in self._living():
            _kill(pid, signal.SIGKILL)
        self._launcher.wait()
        self._out.close()
        self._err.close()

    def rank(self, rank: int) -> int:
        """The process of a rank, while it lives."""
        for pid, environment in self._living().items():
            if str(rank) in (environment.get(name) for name in surroundings.RANK_NAMES):
                return pid
        raise ProcessLookupError(f"rank {rank} does not run: {self._said()}")

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        """Send a signal to the launcher, or to one rank."""
        _kill(self._launcher.pid if rank is None else self.rank(rank), number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to the launcher and to every rank."""
        for pid in self._living():
            _kill(pid, number)

    def is_running(self) -> bool:
        """Whether the launcher has not ended."""
        return self._launcher.poll() is None

    def end_by(self, moment: float) -> None:
        """Wait until a moment of the monotonic clock, or until the launcher has ended."""
        while self.is_running() and time.monotonic() < moment:
            time.sleep(0.002)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until the condition holds; fail if the job ends before that."""
        while not condition():
            if self._launcher.poll() is not None or time.monotonic() - self._start > JOB_SECONDS:
                pytest.fail(f"never came: {what}\n{self._said()}")
            time.sleep(0.01)

    def end(self, meanwhile: Callable[[], object] = lambda: None) -> Outcome:
        """Wait until every process has ended, doing something again and again meanwhile; fail if that takes long."""
        while self._launcher.poll() is None or self._living():
            if time.monotonic() - self._start > JOB_SECONDS:
                pytest.fail(f"still running after {JOB_SECONDS} s: {self._living().keys()}\n{self._said()}")
            meanwhile()
            time.sleep(0.02)
        out, err = _text(self._out), _text(self._err)
        return Outcome(status=self._launcher.returncode, out=out, err=err, seconds=time.monotonic() - self._start)

    def has_said(self, text: str) -> bool:
        """Whether a text has been printed so far."""
        return text in self._said()

    def _said(self) -> str:
        return f"{_text(self._out)}\n{_text(self._err)}"

    def _living(self) -> dict[int, dict[str, str]]:
        """The processes of the job, with their environments; those that have ended and wait to be reaped have none."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                content = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"{MARK}={self._mark}" in content:
                found[int(path.parent.name)] = dict(each.partition("=")[::2] for each in content.split("\0"))
        return found


def run(command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a job to its end."""
    with Job(command, directory, environment) as job:
        return job.end()


def _text(stream: IO[bytes]) -> str:
    return os.pread(stream.fileno(), 10**7, 0).decode(errors="replace")


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
