"""Run a command and measure it from outside: wall time, CPU time and peak memory of every process it starts.

Linux only: memory is read from /proc while the command runs. This module knows nothing of checkpoints, and never takes
a command's own word for what it cost.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

SAMPLING_INTERVAL = 0.05  # seconds; a hundredth of a core goes into it
SAMPLES_PER_SEARCH = 5  # looking for new processes costs 2 ms, reading the peaks of known ones a tenth of that
TAIL_LINES = 40


class CommandError(RuntimeError):
    """A measured command failed."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one run of a command cost; memory in bytes, per process of its tree, largest first."""

    wall: float
    cpu: float
    peaks: tuple[int, ...]
    output: str


def measure(command: Sequence[str], *, directory: Path) -> Measurement:
    """Run a command in a directory.

    Raises:
        CommandError: it failed; with the end of what it printed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        # Modules of an installed program are compiled; those of a checkout, the first time, where that is kept.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=subprocess.STDOUT)
        with PeakSampler(process.pid) as sampler:
            # wait4 rather than Popen.wait: it gives the CPU time of this process and of all that it waited for.
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        tail = "\n".join(text.splitlines()[-TAIL_LINES:])
        raise CommandError(f"exit status {process.returncode} of: {' '.join(command)}\n{tail}")
    return Measurement(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peaks=tuple(sorted(sampler.peaks.values(), reverse=True)),
        output=text,
    )


class PeakSampler:
    """Follows the peak resident size of a process and all its descendants until it is told to stop."""

    def __init__(self, root: int) -> None:
        self.peaks: dict[int, int] = {}
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for sample in count():
            if sample % SAMPLES_PER_SEARCH == 0:
                tree = process_tree(self._root)
            for pid in tree:
                peak = peak_resident(pid)
                if peak:
                    # The last value, not the largest: between fork and exec a process shows its parent's.
                    self.peaks[pid] = peak
            if self._stop.wait(SAMPLING_INTERVAL):
                return


def process_tree(root: int) -> list[int]:
    """The process and all its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it has ended
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, ()))
    return tree


def peak_resident(pid: int) -> int:
    """The largest resident size a process has had, in bytes; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
